//! Every program loads on this kernel, and says how many instructions the verifier went through.
use cni_agent::datapath::{Datapath, object};

#[test]
fn verified() {
    let mut datapath = Datapath::load(None).expect("the object loads");
    for name in object::HOOKS {
        let info = datapath.classifier(name).expect("is in the object").info().expect("has facts");
        let verified = info.verified_instruction_count().map_or("not-reported".to_owned(), |n| n.to_string());
        println!("verified: {name} {verified} xlated {:?} jited {}", info.size_translated(), info.size_jitted());
    }
}
