//! What traceroute, tracepath and mtr say.
use std::net::IpAddr;

/// The addresses in lines that begin with a number, which is the hop's; one for each hop. A hop that did not answer has none.
pub fn hops(said: &str, separator: &str) -> Vec<Option<IpAddr>> {
    let mut hops: Vec<Option<IpAddr>> = Vec::new();
    for line in said.lines() {
        let Some((number, rest)) = line.trim().split_once(separator) else { continue };
        let Ok(number) = number.trim().parse::<usize>() else { continue };
        hops.resize(hops.len().max(number), None);
        let address = rest.split_whitespace().find_map(|word| word.trim_matches(['(', ')']).parse().ok());
        hops[number - 1] = hops[number - 1].or(address);
    }
    hops
}

/// Every hop in a report of mtr answered each time.
pub fn lossless(said: &str) -> bool {
    said.lines().filter(|l| l.contains(".|--")).all(|l| l.contains(" 0.0%"))
}
