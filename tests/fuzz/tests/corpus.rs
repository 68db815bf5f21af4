//! What is stored of each target holds: the inputs that reach far, and those that once broke something.
use std::{fs, panic};

use fuzz::TARGETS;

#[test]
fn every_stored_input_holds() {
    for target in TARGETS {
        let mut files: Vec<_> = fs::read_dir(target.corpus())
            .unwrap_or_else(|e| panic!("the corpus of {}: {e}", target.name))
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{} has no corpus", target.name);
        for file in files {
            let input = fs::read(&file).unwrap();
            let held = panic::catch_unwind(|| (target.run)(&input));
            assert!(held.is_ok(), "{}: {} breaks it, as the message above says", target.name, file.display());
        }
    }
}

#[test]
fn nothing_at_all_holds() {
    for target in TARGETS {
        (target.run)(b"");
        (target.run)(&[0xff; 64]);
        (target.run)(&[b'['; 5000]);
    }
}
