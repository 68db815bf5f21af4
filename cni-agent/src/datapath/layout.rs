//! What is recorded of a map's layout, and how an entry of one layout becomes one of another. Pure.
//!
//! Fields are told by their names: one that both layouts have is copied, one that only the older or only the newer has is left out or zero.
//! That is the same up and down, and no build needs to know another one, but for what stands in its record.
use cni_common::schema::{self, MapSpec, MapType, NAME_BYTES, RECORD_BYTES};

/// What a build recorded of a map that it made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Entries.
    pub max_entries: u32,
    /// `BPF_F_*` at creation.
    pub flags: u32,
    /// Name, offset and size of each field of the value.
    pub fields: Vec<(String, usize, usize)>,
}

/// Why entries of one layout cannot become entries of another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incompatible {
    /// The keys are not the same.
    #[error("it is of type {0} with keys of {1} bytes")]
    Keys(u32, u32),
    /// A field of the same name is not the same.
    #[error("its field {0} has {1} bytes, that of this build {2}")]
    Field(String, usize, usize),
}

/// Under which a map's layout is recorded.
pub fn key(name: &str) -> [u8; NAME_BYTES] {
    padded(name)
}

/// What is recorded of a map of this build.
pub fn record(spec: &MapSpec) -> [u8; RECORD_BYTES] {
    let mut text = format!(
        "{} {} {} {} {} {:016x}",
        spec.kind as u32, spec.key_size, spec.value_size, spec.max_entries, spec.flags, spec.fingerprint
    );
    for (name, offset, size) in spec.fields {
        text.push_str(&format!(" {name}:{offset}:{size}"));
    }
    padded(&text)
}

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut all = [0; N];
    let n = text.len().min(N);
    all[..n].copy_from_slice(&text.as_bytes()[..n]);
    all
}

/// Reads a record; `None` when it is none: cut, or its fields are not those of its fingerprint.
pub fn read(record: &[u8]) -> Option<Layout> {
    let text = str::from_utf8(record).ok()?.trim_end_matches('\0');
    let mut words = text.split(' ');
    let mut number = || words.next()?.parse::<u32>().ok();
    let (kind, key_size, value_size, max_entries, flags) = (number()?, number()?, number()?, number()?, number()?);
    let fingerprint = u64::from_str_radix(words.next()?, 16).ok()?;
    let field = |word: &str| {
        let mut parts = word.split(':');
        let (name, offset, size) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let inside = usize::checked_add(offset, size).is_some_and(|end| end <= value_size as usize);
        // A ring buffer has records, but no values.
        (inside || value_size == 0).then(|| (name.to_owned(), offset, size))
    };
    let fields = words.map(field).collect::<Option<Vec<_>>>()?;
    let layout: Vec<_> = fields.iter().map(|(name, offset, size)| (name.as_str(), *offset, *size)).collect();
    (schema::fingerprint(&layout) == fingerprint).then_some(Layout {
        kind,
        key_size,
        value_size,
        max_entries,
        flags,
        fields,
    })
}

/// From where to where the fields of an entry are copied.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Offset there, offset here, bytes.
    copies: Vec<(usize, usize, usize)>,
    from: usize,
    to: usize,
}

impl Plan {
    /// Of entries of `from` for the map `to`.
    pub fn new(from: &Layout, to: &MapSpec) -> Result<Self, Incompatible> {
        if (from.kind, from.key_size) != (to.kind as u32, to.key_size) {
            return Err(Incompatible::Keys(from.kind, from.key_size));
        }
        let mut copies = Vec::new();
        // Padding is 0, however much of it there is.
        for (name, offset, size) in to.fields.iter().filter(|(name, ..)| *name != "pad") {
            let Some((_, there, bytes)) = from.fields.iter().find(|(n, ..)| n == name) else { continue };
            if bytes != size {
                return Err(Incompatible::Field((*name).to_owned(), *bytes, *size));
            }
            copies.push((*there, *offset, *size));
        }
        // The kernel rounds each CPU's value up.
        let stride = |size: u32| match to.kind {
            MapType::PerCpuArray => (size as usize).next_multiple_of(8),
            _ => size as usize,
        };
        Ok(Self { copies, from: stride(from.value_size), to: stride(to.value_size) })
    }

    /// The entry's value here; of a per-CPU map that of each CPU.
    pub fn value(&self, there: &[u8]) -> Vec<u8> {
        let each = there.chunks_exact(self.from.max(1)).flat_map(|value| {
            let mut new = vec![0; self.to];
            for (from, to, bytes) in &self.copies {
                new[*to..to + bytes].copy_from_slice(&value[*from..from + bytes]);
            }
            new
        });
        each.collect()
    }
}

#[cfg(test)]
mod tests {
    use cni_common::schema::Field;

    use super::*;

    const OLD: &[Field] = &[("seen", 0, 8), ("port", 8, 2), ("pad", 10, 6)];
    const NEW: &[Field] = &[("mark", 0, 4), ("port", 4, 2), ("pad", 6, 2), ("seen", 8, 8)];

    fn spec(kind: MapType, fields: &'static [Field], max_entries: u32) -> MapSpec {
        let fingerprint = schema::fingerprint(fields);
        MapSpec { kind, key_size: 4, value_size: 16, max_entries, flags: 0, fields, fingerprint, ..schema::COUNTS }
    }
    fn layout(spec: &MapSpec) -> Layout {
        read(&record(spec)).expect("a record")
    }

    #[test]
    fn every_map_of_this_build_can_be_recorded() {
        for spec in schema::ALL {
            let layout = layout(spec);
            assert_eq!((layout.value_size, layout.fields.len()), (spec.value_size, spec.fields.len()), "{}", spec.name);
        }
    }

    #[test]
    fn a_record_whose_fields_are_not_those_of_its_fingerprint_is_none() {
        let whole = record(&spec(MapType::Hash, OLD, 8));
        let text = String::from_utf8(whole.to_vec()).expect("text");
        for (what, with) in [("seen:0:8", "seen:1:8"), ("port", "pore"), ("16", "15"), (" pad:10:6", "")] {
            assert_ne!(text.replacen(what, with, 1), text, "{what}");
            assert_eq!(read(text.replacen(what, with, 1).as_bytes()), None, "{what} as {with}");
        }
        assert_eq!(read(&[0; RECORD_BYTES]), None);
        assert_eq!(read(&[0xff; 8]), None);
    }

    #[test]
    fn what_both_layouts_have_is_kept_up_and_down_and_the_rest_is_zero() {
        let (old, new) = (spec(MapType::Hash, OLD, 8), spec(MapType::Hash, NEW, 4));
        let value = [&7_u64.to_ne_bytes()[..], &[1, 2], &[0; 6]].concat();
        let up = Plan::new(&layout(&old), &new).expect("a plan").value(&value);
        assert_eq!(up, [&[0, 0, 0, 0, 1, 2, 0, 0], &7_u64.to_ne_bytes()[..]].concat());
        assert_eq!(Plan::new(&layout(&new), &old).expect("a plan").value(&up), value);
    }

    #[test]
    fn of_a_per_cpu_map_each_cpus_value_is_kept() {
        const ONE: &[Field] = &[("a", 0, 4), ("b", 4, 4), ("c", 8, 4)];
        const TWO: &[Field] = &[("c", 0, 4)];
        let one = MapSpec { value_size: 12, ..spec(MapType::PerCpuArray, ONE, 1) };
        let two = MapSpec { value_size: 4, ..spec(MapType::PerCpuArray, TWO, 1) };
        let cpu = |c: u8| [[9; 4], [8; 4], [c; 4], [0; 4]].concat();
        let there = [cpu(1), cpu(2)].concat();
        let here = Plan::new(&layout(&one), &two).expect("a plan").value(&there);
        assert_eq!(here, [1, 1, 1, 1, 0, 0, 0, 0, 2, 2, 2, 2, 0, 0, 0, 0]);
    }

    #[test]
    fn what_cannot_be_the_same_is_refused() {
        const WIDE: &[Field] = &[("seen", 0, 4)];
        let (old, wide) = (spec(MapType::Hash, OLD, 8), spec(MapType::Hash, WIDE, 8));
        assert_eq!(Plan::new(&layout(&old), &wide), Err(Incompatible::Field("seen".into(), 8, 4)));
        assert_eq!(Plan::new(&layout(&old), &spec(MapType::Array, OLD, 8)), Err(Incompatible::Keys(1, 4)));
        let longer = MapSpec { key_size: 16, ..spec(MapType::Hash, OLD, 8) };
        assert_eq!(Plan::new(&layout(&longer), &old), Err(Incompatible::Keys(1, 16)));
    }
}
