//! Single values as people write them: what is taken, and what is said of the rest.
use std::net::SocketAddr;

use ipnet::IpNet;

use crate::ports::PortRange;

pub(super) fn conflist_name(s: &str) -> Result<String, String> {
    if s.ends_with(".conflist") && !s.starts_with('.') && !s.contains('/') {
        Ok(s.to_owned())
    } else {
        Err("must be a file's name, without a directory, that ends in .conflist".to_owned())
    }
}

pub(super) fn node_name(s: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    if s.is_empty() {
        return Err("a node must have a name, and this host has none: give --node-name".into());
    }
    if s.len() > 253 || !s.bytes().all(allowed) {
        return Err("a node's name has at most 253 characters out of a-z, 0-9, '-' and '.'".into());
    }
    Ok(s.to_owned())
}

pub(super) fn cidr(s: &str) -> Result<IpNet, String> {
    let net: IpNet =
        s.parse().map_err(|_| "not a network in CIDR notation such as 10.0.0.0/8 or fd00::/48".to_owned())?;
    if net.trunc() != net {
        return Err(format!("it has bits set behind the prefix; meant is perhaps {}", net.trunc()));
    }
    Ok(net)
}

pub(super) fn server_url(s: &str) -> Result<String, String> {
    let url = s.parse::<hyper::Uri>().ok().filter(|u| u.host().is_some() && matches!(u.path(), "" | "/"));
    match url.and_then(|u| u.scheme_str().map(str::to_owned)).as_deref() {
        Some("https" | "http") => Ok(s.trim_end_matches('/').to_owned()),
        _ => Err("not the URL of an API server such as https://10.0.0.1:6443".to_owned()),
    }
}

pub(super) fn listen_address(s: &str) -> Result<SocketAddr, String> {
    let all = if s.starts_with(':') { format!("[::]{s}") } else { s.to_owned() };
    match all.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err("not an address to listen on such as 127.0.0.1:9810, [fd00::1]:9810 or :9810".to_owned()),
    }
}

pub(super) fn masquerade_ports(s: &str) -> Result<PortRange, String> {
    let range: PortRange = s.parse().map_err(|_| "not a range of ports such as 61000-65535".to_owned())?;
    if range.first() < 1024 {
        // RFC 6335 section 6.
        return Err("ports below 1024 are those of well-known services: begin at 1024 or above".into());
    }
    Ok(range)
}

pub(super) fn device_name(s: &str) -> Result<String, String> {
    // IFNAMSIZ is 16 with the final NUL; the rest is dev_valid_name() of the kernel.
    if s.is_empty()
        || s.len() > 15
        || s == "."
        || s == ".."
        || s.contains(['/', ':'])
        || s.contains(char::is_whitespace)
    {
        return Err("a device's name has 1 to 15 characters, without '/', ':' and blanks".into());
    }
    Ok(s.to_owned())
}

pub(super) fn mtu(s: &str) -> Result<u32, String> {
    // Below 1280 + 70 a pod could not be given IPv6's least MTU (RFC 8200 section 5) over an IPv6 underlay.
    match s.parse() {
        Ok(n @ (0 | 1350..=65535)) => Ok(n),
        _ => Err("an MTU is a number of bytes from 1350 to 65535, or 0 to take that of the devices".into()),
    }
}

pub(super) fn log_filter(s: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(s) {
        Ok(_) => Ok(s.to_owned()),
        Err(e) => Err(format!("{e}; a filter is a level (error, warn, info, debug, trace, off) or module=level, …")),
    }
}
