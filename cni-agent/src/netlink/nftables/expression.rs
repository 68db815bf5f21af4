//! The expressions of Weft's own rules, as the kernel takes them and shows them again.
//!
//! One list of attributes serves both ways: what is read is compared with what was asked for, so an attribute that a newer kernel shows beside them
//! is no difference.
use ipnet::IpNet;

use super::super::read;
use crate::ports::PortRange;

// From include/uapi/linux/netfilter/nf_tables.h. All are known to Linux 5.10.
const ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
const VALUE: u16 = 1;
const VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
/// `NFT_REG_VERDICT`.
const TO_VERDICT: u32 = 0;
/// `NFT_REG_1` and `NFT_REG_2`, of 16 bytes each.
const FIRST: u32 = 1;
const SECOND: u32 = 2;
/// `NFT_META_NFPROTO` and `NFT_META_OIFNAME`.
const PROTOCOL_FAMILY: u32 = 15;
const OUT_NAME: u32 = 7;
/// `NFT_CT_STATUS`.
const STATUS: u32 = 2;
/// `IPS_DST_NAT`: the destination of the connection was translated.
const TRANSLATED: u32 = 1 << 5;
/// `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK_HEADER: u32 = 1;
/// `NFT_CMP_EQ` and `NFT_CMP_NEQ`.
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`. Linux 5.10 does not set it by itself when it is given ports.
const PORTS_GIVEN: u32 = 1 << 1;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `IFNAMSIZ`.
const DEVICE_NAME: usize = 16;

/// One step of a rule: it fills a register, compares what is there, or decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expression {
    name: String,
    /// In the order of their numbers.
    attributes: Vec<(u16, Value)>,
}

/// What an attribute holds.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    /// 32 bits in network order.
    Number(u32),
    /// Bytes as they are.
    Bytes(Vec<u8>),
    /// A verdict without a chain.
    Verdict(u32),
}

/// Attributes of the expressions that ours are made of, and their forms.
const FORMS: [(&str, &[(u16, Form)]); 7] = [
    ("meta", &[(1, Form::Number), (2, Form::Number)]),
    ("ct", &[(1, Form::Number), (2, Form::Number)]),
    ("payload", &[(1, Form::Number), (2, Form::Number), (3, Form::Number), (4, Form::Number)]),
    ("bitwise", &[(1, Form::Number), (2, Form::Number), (3, Form::Number), (4, Form::Bytes), (5, Form::Bytes)]),
    ("cmp", &[(1, Form::Number), (2, Form::Number), (3, Form::Bytes)]),
    ("immediate", &[(1, Form::Number), (2, Form::Bytes)]),
    ("masq", &[(1, Form::Number), (2, Form::Number), (3, Form::Number)]),
];
#[derive(Clone, Copy)]
enum Form {
    Number,
    /// Bytes, or a verdict.
    Bytes,
}

impl Expression {
    fn new<const N: usize>(name: &str, attributes: [(u16, Value); N]) -> Self {
        Self { name: name.to_owned(), attributes: attributes.into() }
    }

    /// As an element of a rule's list.
    pub(super) fn write(&self) -> Vec<u8> {
        let data = self.attributes.iter().flat_map(|(kind, value)| match value {
            Value::Number(number) => attribute(*kind, &number.to_be_bytes()),
            Value::Bytes(bytes) => nested(*kind, &attribute(VALUE, bytes)),
            Value::Verdict(code) => nested(*kind, &nested(VERDICT, &attribute(VERDICT_CODE, &code.to_be_bytes()))),
        });
        nested(ELEMENT, &[text(NAME, &self.name), nested(DATA, &data.collect::<Vec<_>>())].concat())
    }

    /// An element of a rule's list. What is no expression of ours has its name alone.
    pub(super) fn read(element: &[u8]) -> Self {
        let of = |kind| read::nested(element).find(|(k, _)| *k == kind).map(|(_, value)| value);
        let name = of(NAME).map(read::text).unwrap_or_default();
        let form = FORMS.iter().find(|(n, _)| *n == name).map_or(&[][..], |(_, form)| form);
        let data = of(DATA).unwrap_or_default();
        let value = |(kind, form): &(u16, Form)| {
            let (_, value) = read::nested(data).find(|(k, _)| k == kind)?;
            let number = |v: &[u8]| Some(u32::from_be_bytes(v.try_into().ok()?));
            let value = match form {
                Form::Number => Value::Number(number(value)?),
                Form::Bytes => read::nested(value).find_map(|(kind, value)| match kind {
                    VALUE => Some(Value::Bytes(value.to_vec())),
                    VERDICT => read::nested(value)
                        .find(|(k, _)| *k == VERDICT_CODE)
                        .and_then(|(_, v)| number(v))
                        .map(Value::Verdict),
                    _ => None,
                })?,
            };
            Some((*kind, value))
        };
        Self { attributes: form.iter().filter_map(value).collect(), name }
    }
}

/// The packet is of the family of this address.
pub(super) fn is_of_family(net: IpNet) -> [Expression; 2] {
    let family = if net.addr().is_ipv4() { IPV4 } else { IPV6 };
    [load("meta", PROTOCOL_FAMILY), compare(EQUAL, &[family])]
}

/// The stack has translated the destination of its connection.
pub(super) fn is_translated() -> [Expression; 3] {
    let nothing = 0_u32.to_ne_bytes();
    [load("ct", STATUS), mask(&TRANSLATED.to_ne_bytes()), compare(NOT_EQUAL, &nothing)]
}

/// It leaves by another device than this.
pub(super) fn leaves_elsewhere(device: &str) -> [Expression; 2] {
    let mut name = device.as_bytes().to_vec();
    name.resize(DEVICE_NAME, 0);
    [load("meta", OUT_NAME), compare(NOT_EQUAL, &name)]
}

/// Its source, or its destination, is one of these. The family was asked before.
pub(super) fn is_in(net: IpNet, source: bool) -> Vec<Expression> {
    // Place of the source address in the header; the destination stands behind it.
    let (at, address, netmask) = match net.trunc() {
        IpNet::V4(net) => (12, net.network().octets().to_vec(), net.netmask().octets().to_vec()),
        IpNet::V6(net) => (8, net.network().octets().to_vec(), net.netmask().octets().to_vec()),
    };
    let length = u32::try_from(address.len()).unwrap_or_default();
    let at = if source { at } else { at + length };
    let load = Expression::new("payload", [(1, FIRST), (2, NETWORK_HEADER), (3, at), (4, length)].map(number));
    let whole = net.prefix_len() == net.max_prefix_len();
    let mask = (!whole).then(|| mask(&netmask));
    [Some(load), mask, Some(compare(EQUAL, &address))].into_iter().flatten().collect()
}

/// It goes on as it is.
pub(super) fn accept() -> Vec<Expression> {
    vec![Expression::new("immediate", [number((1, TO_VERDICT)), (2, Value::Verdict(ACCEPT))])]
}

/// It gets an address of the device by which it leaves, and one of these ports, its own if that is among them and free.
pub(super) fn masquerade(ports: Option<PortRange>) -> Vec<Expression> {
    let Some(ports) = ports else { return vec![Expression::new("masq", [])] };
    let port = |register, port: u16| {
        Expression::new("immediate", [number((1, register)), (2, Value::Bytes(port.to_be_bytes().to_vec()))])
    };
    let masquerade = Expression::new("masq", [(1, PORTS_GIVEN), (2, FIRST), (3, SECOND)].map(number));
    vec![port(FIRST, ports.first()), port(SECOND, ports.last()), masquerade]
}

fn number((kind, number): (u16, u32)) -> (u16, Value) {
    (kind, Value::Number(number))
}

/// A property of the packet or its connection into the first register.
fn load(name: &str, key: u32) -> Expression {
    Expression::new(name, [(1, FIRST), (2, key)].map(number))
}

fn compare(how: u32, data: &[u8]) -> Expression {
    Expression::new("cmp", [number((1, FIRST)), number((2, how)), (3, Value::Bytes(data.to_vec()))])
}

/// Only these bits of the first register stay.
fn mask(bits: &[u8]) -> Expression {
    let length = u32::try_from(bits.len()).unwrap_or_default();
    let [source, destination, length] = [(1, FIRST), (2, FIRST), (3, length)].map(number);
    let (kept, turned) = (Value::Bytes(bits.to_vec()), Value::Bytes(vec![0; bits.len()]));
    Expression::new("bitwise", [source, destination, length, (4, kept), (5, turned)])
}

/// An attribute with its padding.
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    const HEADER: usize = 4;
    // The longest of ours is a rule's list, far below 64 KiB.
    let length = u16::try_from(value.len() + HEADER).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute of attributes.
pub(super) fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    /// `NLA_F_NESTED`.
    const NESTED: u16 = 1 << 15;
    attribute(kind | NESTED, value)
}

/// Text with its terminating zero.
pub(super) fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, &[text.as_bytes(), b"\0"].concat())
}
