//! The codec against every record, against arbitrary bytes, and against version 1's bytes.

use super::*;
use alloc::vec;
use proptest::prelude::*;

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..200)
}

fn any_input() -> impl Strategy<Value = Input> {
    prop_oneof![
        any::<u64>().prop_map(|now_ns| Input::TimeRead { now_ns }),
        any::<u64>().prop_map(|now_ns| Input::Tick { now_ns }),
        (any::<u16>(), any_bytes()).prop_map(|(device, bytes)| Input::Packet { device, bytes }),
        (any::<u16>(), any::<u64>(), any::<u8>(), any_bytes()).prop_map(
            |(device, token, status, data)| Input::BlockDone { device, token, status, data }
        ),
        (any::<u16>(), any_bytes()).prop_map(|(device, bytes)| Input::Console { device, bytes }),
        any_bytes().prop_map(|bytes| Input::Serial { bytes }),
        (any::<u16>(), any_bytes()).prop_map(|(device, bytes)| Input::Entropy { device, bytes }),
        any::<u16>().prop_map(|device| Input::Announce { device }),
        Just(Input::PowerButton),
        Just(Input::Reset),
    ]
}

fn any_page() -> impl Strategy<Value = (u64, Page)> {
    (any::<u64>(), prop::option::of(any::<u8>())).prop_map(|(number, fill)| {
        let page = fill.map_or(Page::Zero, |fill| Page::Data(Box::new([fill; PAGE_SIZE])));
        (number, page)
    })
}

/// Some registers close to 0 and to each other, some anywhere.
fn any_registers() -> impl Strategy<Value = RegisterValues> {
    let register = prop_oneof![0..4u64, any::<u64>(), Just(u64::MAX)];
    prop::collection::vec(register, REGISTERS)
        .prop_map(|values| core::array::from_fn(|place| values[place]))
}

fn any_record() -> impl Strategy<Value = Record> {
    prop_oneof![
        6 => any_input().prop_map(Record::Input),
        1 => any::<u64>().prop_map(|value| Record::Digest { value }),
        2 => any_registers().prop_map(|values| Record::Registers(Box::new(values))),
        1 => any_bytes().prop_map(|state| Record::Devices { state }),
        1 => (any::<u64>(), any::<Option<u64>>())
            .prop_map(|(devices, memory)| Record::StateDigest { devices, memory }),
        1 => prop::collection::vec(any_page(), 0..20).prop_map(|pages| Record::Pages { pages }),
        1 => prop::collection::vec((any::<u64>(), prop::collection::vec(any::<u8>(), 0..40)), 0..9)
            .prop_map(|patches| Record::Patches { patches }),
        1 => any_bytes().prop_map(|part| Record::Models { part }),
        1 => Just(Record::Heals),
        1 => (any_bytes(), prop::option::of(any_bytes()), any::<u64>(), any::<u64>()).prop_map(
            |(vcpu, machine, count, digest)| {
                Record::Delta { vcpu, machine, outputs: Trail { count, digest } }
            }
        ),
        1 => any::<u64>().prop_map(|output| Record::Released { output }),
        1 => prop_oneof![
            Just(EndReason::PowerOff),
            Just(EndReason::Stopped),
            Just(EndReason::Failover)
        ]
        .prop_map(|reason| Record::End { reason }),
    ]
}

fn decode_all(start: u64, bytes: &[u8]) -> Result<Vec<(u64, Record)>, DecodeError> {
    let mut decoder = Decoder::new(start, bytes);
    let mut records = vec![];
    while let Some(record) = decoder.next_record()? {
        records.push(record);
    }
    Ok(records)
}

fn encode_all(start: u64, records: &[(u64, Record)]) -> Vec<u8> {
    let mut encoder = Encoder::new(start);
    let mut bytes = vec![];
    for (moment, record) in records {
        encoder.append(*moment, record, &mut bytes);
    }
    bytes
}

proptest! {
    #[test]
    fn every_record_comes_back_as_it_was(
        start in 0..u64::MAX / 2,
        steps in prop::collection::vec((prop_oneof![0..10u64, any::<u32>().prop_map(u64::from)],
            any_record()), 0..40),
    ) {
        let mut moment = start;
        let records: Vec<_> = steps.into_iter().map(|(step, record)| {
            moment += step;
            (moment, record)
        }).collect();
        let bytes = encode_all(start, &records);
        prop_assert_eq!(decode_all(start, &bytes), Ok(records.clone()));
        // Cut anywhere, the bytes give a prefix of the records and then an end or an error.
        let cut = bytes.len() / 2;
        let mut decoder = Decoder::new(start, &bytes[..cut]);
        let mut prefix = vec![];
        while let Ok(Some(record)) = decoder.next_record() {
            prefix.push(record);
        }
        prop_assert_eq!(&prefix[..], &records[..prefix.len()]);
    }

    #[test]
    fn arbitrary_bytes_never_panic(start in any::<u64>(), bytes in any_bytes()) {
        let _ = decode_all(start, &bytes);
    }

    #[test]
    fn one_wrong_byte_never_panics(
        records in prop::collection::vec(any_record(), 1..10),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
    ) {
        let records: Vec<_> = records.into_iter().map(|record| (0, record)).collect();
        let mut bytes = encode_all(0, &records);
        let at = at.index(bytes.len());
        bytes[at] = value;
        let _ = decode_all(0, &bytes);
    }

    #[test]
    fn what_decodes_encodes_to_the_same_bytes(bytes in any_bytes()) {
        // One encoding per log: equal logs are equal bytes.
        let mut decoder = Decoder::new(0, &bytes);
        let mut records = vec![];
        let mut length = 0;
        while let Ok(Some(record)) = decoder.next_record() {
            records.push(record);
            length = bytes.len() - decoder.remaining();
        }
        prop_assert_eq!(encode_all(0, &records), &bytes[..length]);
    }
}

#[test]
fn the_bytes_of_format_version_1_never_change() {
    let mut page = [0; PAGE_SIZE];
    page[0] = 0xaa;
    let records = [
        (100, Record::Input(Input::TimeRead { now_ns: 1_000_000 })),
        (100, Record::Input(Input::Tick { now_ns: 1_000_001 })),
        (101, Record::Input(Input::Packet { device: 1, bytes: vec![1, 2] })),
        (108, Record::Input(Input::BlockDone { device: 300, token: 7, status: 1, data: vec![9] })),
        (108, Record::Input(Input::Console { device: 2, bytes: vec![3] })),
        (108, Record::Input(Input::Serial { bytes: vec![4] })),
        (108, Record::Input(Input::Entropy { device: 3, bytes: vec![5] })),
        (108, Record::Input(Input::Announce { device: 4 })),
        (108, Record::Input(Input::PowerButton)),
        (108, Record::Input(Input::Reset)),
        (108, Record::Digest { value: 0x0102_0304_0506_0708 }),
        (108, Record::StateDigest { devices: 1, memory: None }),
        (108, Record::StateDigest { devices: 1, memory: Some(2) }),
        (108, Record::Released { output: 129 }),
        (
            109,
            Record::Delta {
                vcpu: vec![6],
                machine: Some(vec![7]),
                outputs: Trail { count: 3, digest: 4 },
            },
        ),
        (109, Record::End { reason: EndReason::Failover }),
    ];
    let golden = "01c0843d0201230102 0102 e400ac02070101 09 05020103 060104 07030105 0804 09 0a \
                  100807060504030201 11010000000000000000 1101000000000000000102000000000000 00 \
                  148101 33010601010703 0400000000000000 1503";
    let golden: alloc::string::String = golden.split_whitespace().collect();
    let bytes = encode_all(100, &records);
    let hex: alloc::string::String = bytes.iter().map(|b| alloc::format!("{b:02x}")).collect();
    assert_eq!(hex, golden);

    let pages = Record::Pages {
        pages: vec![(16, Page::Zero), (17, Page::from_bytes(&page)), (19, Page::Zero)],
    };
    let bytes = encode_all(0, &[(0, pages)]);
    assert_eq!(bytes[..7], [0x12, 3, 0b010, 16, 0, 1, 0xaa]);
    assert_eq!(bytes.len(), 6 + PAGE_SIZE);

    let patches = Record::Patches { patches: vec![(16, vec![0, 1, 8]), (18, vec![])] };
    assert_eq!(encode_all(0, &[(0, patches)]), [0x18, 2, 16, 3, 0, 1, 8, 1, 0]);
    assert_eq!(encode_all(0, &[(1, Record::Heals)]), [0x3a]);
}

#[test]
fn the_bytes_of_registers_and_device_states_never_change() {
    let mut values = [0; REGISTERS];
    (values[0], values[17]) = (5, u64::MAX);
    let mut next = values;
    next[0] = 4;
    let records = [
        (9, Record::Registers(Box::new(values))),
        (10, Record::Registers(Box::new(next))),
        (10, Record::Registers(Box::new(next))),
        (10, Record::Devices { state: vec![8, 9] }),
    ];
    let bytes = encode_all(9, &records);
    assert_eq!(bytes[..6], [0x16, 0x81, 0x80, 0x08, 10, 1], "two registers changed from zero");
    assert_eq!(bytes[6..9], [0x36, 1, 1], "one of them is one less");
    assert_eq!(bytes[9..11], [0x16, 0], "none changed");
    assert_eq!(bytes[11..], [0x17, 2, 8, 9]);
    assert_eq!(decode_all(9, &bytes), Ok(records.to_vec()));
    // A register that there is not, and one that is said to have changed and has not.
    assert!(decode_all(0, &[0x16, 0x80, 0x80, 0x10, 2]).is_err());
    assert!(decode_all(0, &[0x16, 1, 0]).is_err());
}

#[test]
fn a_timer_tick_and_a_time_read_cost_at_most_five_bytes() {
    let mut encoder = Encoder::new(0);
    let mut bytes = vec![];
    encoder.append(1, &Record::Input(Input::Tick { now_ns: 5_000_000_000 }), &mut bytes);
    assert!(bytes.len() <= 9);
    for step in 1..100u64 {
        let before = bytes.len();
        let now_ns = 5_000_000_000 + step * 10_000_000;
        encoder.append(1 + step * 6, &Record::Input(Input::Tick { now_ns }), &mut bytes);
        assert!(bytes.len() - before <= 5);
    }
}

#[test]
fn zero_pages_cost_little_over_a_byte() {
    let pages = (0..256).map(|number| (number, Page::Zero)).collect();
    assert!(encode_all(0, &[(0, Record::Pages { pages })]).len() < 300);
}

#[test]
fn a_record_kind_of_a_later_version_is_named() {
    let error = decode_all(0, &[31]).unwrap_err();
    assert_eq!(
        alloc::string::ToString::to_string(&error),
        "the log holds a record of kind number 31, which format version 1 does not have"
    );
}
