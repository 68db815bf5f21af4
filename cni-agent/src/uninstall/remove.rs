//! Removes what was found. What is gone already is removed.
use std::{fs, io};

use super::{Found, Item, Way};
use crate::{
    datapath::attach,
    error_chain,
    netlink::{MissingIsDone as _, Socket, link, nftables::own, pod, rule},
};

/// Removes all items, in order, and goes on behind one that does not go; answers what stays, and why.
pub fn remove(found: &Found, socket: &mut Socket) -> Vec<String> {
    let stays = |item: &Item| one(item, socket).err().map(|why| format!("{} {}: {why}", item.kind, item.name));
    found.items.iter().filter_map(stays).collect()
}

fn one(item: &Item, socket: &mut Socket) -> Result<(), String> {
    match &item.way {
        Way::File(path) => done(fs::remove_file(path)),
        Way::Directory(path) => match fs::remove_dir(path) {
            // Somebody else's things are in it.
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => done(other),
        },
        Way::Filter(index) => attach::take_filter(socket, *index).missing_is_done().map_err(|e| error_chain(&e)),
        Way::EmptyClsact(index) => {
            attach::take_empty_clsact(socket, *index).missing_is_done().map_err(|e| error_chain(&e))
        }
        Way::Device(index) => socket.run(link::delete(*index)).missing_is_done().map_err(|e| error_chain(&e)),
        Way::Ports(ports) => ports.give_back().map_err(|e| error_chain(&e)),
        Way::Rules(netns, rules) => match pod::socket_at(netns) {
            Ok(None) => Ok(()),
            Ok(Some(mut socket)) => rules
                .iter()
                .try_for_each(|r| socket.run(rule::delete(*r)).missing_is_done())
                .map_err(|e| error_chain(&e)),
            Err(e) => Err(error_chain(&e)),
        },
        Way::WithDevice => Ok(()),
        Way::Table => own::delete().map_err(|e| error_chain(&e)),
    }
}

fn done(result: io::Result<()>) -> Result<(), String> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.to_string()),
        _ => Ok(()),
    }
}
