use super::*;

fn ports() -> Option<PortRange> {
    PortRange::new(16_384, 32_767)
}
fn pods() -> Rule {
    Rule::Masquerade { from: "10.244.1.0/24".parse().unwrap(), to: None, ports: ports() }
}
fn all() -> Vec<Rule> {
    let v6 = |to: Option<&str>| Rule::Masquerade {
        from: "fd10:244:1::/64".parse().unwrap(),
        to: to.map(|to| to.parse().unwrap()),
        ports: None,
    };
    vec![pods(), v6(Some("fd00::2/128")), Rule::Keep { to: "198.51.100.0/24".parse().unwrap() }, v6(None)]
}
/// What the kernel would show of these messages.
fn shown(messages: &[Message]) -> Table {
    let payload = |m: &Message| [&[INET, 0, 0, 0][..], &m.attributes].concat();
    let of = |kind| messages.iter().filter(move |m| m.kind == kind);
    Table {
        chains: of(NEW_CHAIN).map(|m| parse_chain(&payload(m))).collect(),
        rules: of(NEW_RULE).map(|m| parse_rule(&payload(m))).collect(),
    }
}
/// An answer of the kernel to a message of the batch.
fn answer(sequence: u32, errno: i32) -> Vec<u8> {
    let mut bytes = 36_u32.to_ne_bytes().to_vec();
    bytes.extend(NLMSG_ERROR.to_ne_bytes());
    bytes.extend([0; 2]);
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend((-errno).to_ne_bytes());
    bytes.extend([0; 16]);
    bytes
}

/// What `nft --debug=netlink` prints of `meta nfproto ipv4 ct status & dnat != 0 ip saddr 10.244.1.0/24 oifname != "weft_host" masquerade to :16384-32767`, and
/// how its library encodes that.
#[test]
fn a_rule_is_encoded_as_nft_encodes_it() {
    let mut bytes = Vec::new();
    let mut expression = |name: &str, data: &[&[u8]]| {
        let data = data.concat();
        let name = [name.as_bytes(), b"\0"].concat();
        let padded = name.len().next_multiple_of(4);
        let length = u16::try_from(4 + 4 + padded + 4 + data.len()).unwrap();
        bytes.extend(length.to_ne_bytes());
        bytes.extend([1, 0x80]);
        bytes.extend(u16::try_from(4 + name.len()).unwrap().to_ne_bytes());
        bytes.extend([1, 0]);
        bytes.extend(&name);
        bytes.resize(bytes.len() + padded - name.len(), 0);
        bytes.extend(u16::try_from(4 + data.len()).unwrap().to_ne_bytes());
        bytes.extend([2, 0x80]);
        bytes.extend(&data);
    };
    const TO_FIRST: &[u8] = &[8, 0, 1, 0, 0, 0, 0, 1];
    const NOT_EQUAL: &[u8] = &[8, 0, 2, 0, 0, 0, 0, 1];
    expression("meta", &[TO_FIRST, &[8, 0, 2, 0, 0, 0, 0, 15]]);
    expression("cmp", &[TO_FIRST, &[8, 0, 2, 0, 0, 0, 0, 0], &[12, 0, 3, 0x80, 5, 0, 1, 0, 2, 0, 0, 0]]);
    expression("ct", &[TO_FIRST, &[8, 0, 2, 0, 0, 0, 0, 2]]);
    let bit = 0x20_u32.to_ne_bytes();
    let four = |kind: u8, value: [u8; 4]| [&[12, 0, kind, 0x80, 8, 0, 1, 0][..], &value].concat();
    let in_place: &[u8] = &[8, 0, 1, 0, 0, 0, 0, 1, 8, 0, 2, 0, 0, 0, 0, 1, 8, 0, 3, 0, 0, 0, 0, 4];
    expression("bitwise", &[in_place, &four(4, bit), &four(5, [0; 4])]);
    expression("cmp", &[TO_FIRST, NOT_EQUAL, &four(3, [0; 4])]);
    expression("payload", &[TO_FIRST, &[8, 0, 2, 0, 0, 0, 0, 1, 8, 0, 3, 0, 0, 0, 0, 12, 8, 0, 4, 0, 0, 0, 0, 4]]);
    expression("bitwise", &[in_place, &four(4, [255, 255, 255, 0]), &four(5, [0; 4])]);
    expression("cmp", &[TO_FIRST, &[8, 0, 2, 0, 0, 0, 0, 0], &four(3, [10, 244, 1, 0])]);
    expression("meta", &[TO_FIRST, &[8, 0, 2, 0, 0, 0, 0, 7]]);
    expression("cmp", &[TO_FIRST, NOT_EQUAL, &[24, 0, 3, 0x80, 20, 0, 1, 0], b"weft_host\0\0\0\0\0\0\0"]);
    expression("immediate", &[TO_FIRST, &[12, 0, 2, 0x80, 6, 0, 1, 0, 0x40, 0, 0, 0]]);
    expression("immediate", &[&[8, 0, 1, 0, 0, 0, 0, 2], &[12, 0, 2, 0x80, 6, 0, 1, 0, 0x7f, 0xff, 0, 0]]);
    expression("masq", &[&[8, 0, 1, 0, 0, 0, 0, 2, 8, 0, 2, 0, 0, 0, 0, 1, 8, 0, 3, 0, 0, 0, 0, 2]]);
    let ours: Vec<u8> = pods().expressions().iter().flat_map(Expression::write).collect();
    assert_eq!(ours, bytes);
}

#[test]
fn a_batch_replaces_the_table_as_a_whole() {
    let messages = replacement(&[pods()]);
    let bytes = batch(&messages);
    let (mut rest, mut seen) = (&bytes[..], Vec::new());
    while let Ok(message) = NetlinkBuffer::new_checked(rest) {
        seen.push((message.message_type(), message.flags(), message.sequence_number()));
        let length = message.length() as usize;
        let generic = &rest[HEADER..HEADER + GENERIC];
        // Beginning and end name the subsystem, the others the family.
        let expected =
            if (BATCH_BEGIN..=BATCH_END).contains(&message.message_type()) { [0, 0, 0, 10] } else { [1, 0, 0, 0] };
        assert_eq!(generic, expected);
        rest = &rest[length.next_multiple_of(4)..];
    }
    let request = NLM_F_REQUEST;
    assert_eq!(
        seen,
        [
            (BATCH_BEGIN, request, 0),
            (0xa00, request | NLM_F_CREATE, 1),
            (0xa02, request, 2),
            (0xa00, request | NLM_F_CREATE, 3),
            (0xa03, request | NLM_F_CREATE, 4),
            (0xa06, request | NLM_F_CREATE | NLM_F_APPEND | NLM_F_ACK, 5),
            (BATCH_END, request, 6),
        ]
    );
}

#[test]
fn what_was_written_is_read_as_the_same_and_other_rules_are_not() {
    assert_eq!(shown(&replacement(&all())), Table::of(&all()));
    for at in 0..all().len() {
        let mut fewer = all();
        fewer.remove(at);
        assert_ne!(Table::of(&fewer), Table::of(&all()));
    }
    let mut another = replacement(&all());
    another.last_mut().unwrap().attributes =
        [text(1, TABLE), text(2, CHAIN), nested(4, &nested(1, &text(1, "log")))].concat();
    assert_ne!(shown(&another), Table::of(&all()), "an expression that is none of ours");
}

#[test]
fn what_a_newer_kernel_shows_beside_it_is_no_difference() {
    let mut messages = replacement(&[pods()]);
    let rule = messages.last_mut().unwrap();
    // A handle, and an attribute that nobody knows.
    rule.attributes.extend([attribute(3, &7_u64.to_be_bytes()), attribute(99, b"new")].concat());
    // `NFTA_BITWISE_OP` behind the others.
    let with_more = |e: &Expression| {
        let mut bytes = e.write();
        let more = attribute(6, &0_u32.to_be_bytes());
        if bytes.windows(8).any(|w| w == b"bitwise\0") {
            bytes.extend(&more);
            for (at, header) in [(0, 0_usize), (16, 16)] {
                let length = u16::try_from(bytes.len() - header).unwrap();
                bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
            }
        }
        bytes
    };
    let list: Vec<u8> = pods().expressions().iter().flat_map(with_more).collect();
    rule.attributes = [text(1, TABLE), text(2, CHAIN), nested(4, &list)].concat();
    assert_eq!(shown(&messages), Table::of(&[pods()]));
}

#[test]
fn a_table_with_a_chain_of_another_name_is_somebody_elses() {
    assert_eq!(Table::of(&all()).foreign(), None);
    let mut table = Table::of(&all());
    table.chains.push(Chain { name: "input".into(), ..table.chains[0].clone() });
    assert_eq!(table.foreign(), Some("input"));
    assert_eq!(Table::default().foreign(), None, "one that somebody has emptied");
}

#[test]
fn the_first_refusal_says_what_the_kernel_lacks() {
    let messages = replacement(&[pods()]);
    let said = |answers: &[Vec<u8>]| verdict(&answers.concat(), &messages);
    let lacks = |answers: &[Vec<u8>]| match said(answers) {
        Some(Err(TableError::Unsupported { lacks })) => lacks,
        other => panic!("{other:?}"),
    };
    assert!(matches!(said(&[answer(5, 0)]), Some(Ok(()))));
    assert!(said(&[]).is_none(), "more is to come");
    assert_eq!(lacks(&[answer(0, libc::EOPNOTSUPP)]), NF_TABLES);
    assert_eq!(lacks(&[answer(4, libc::ENOENT), answer(5, libc::ENOENT)]), NAT_CHAINS);
    assert_eq!(lacks(&[answer(5, libc::ENOENT)]), EXPRESSIONS);
    let refused = said(&[answer(0, libc::EPERM)]);
    assert!(matches!(refused, Some(Err(TableError::Refused { errno: Errno::EPERM, .. }))), "{refused:?}");
    let refused = said(&[answer(2, libc::ENOENT), answer(5, 0)]);
    assert!(matches!(refused, Some(Err(TableError::Refused { errno: Errno::ENOENT, .. }))), "{refused:?}");
    let whole = answer(5, 0);
    for cut in 0..whole.len() {
        assert!(verdict(&whole[..cut], &messages).is_none(), "{cut}");
    }
}
