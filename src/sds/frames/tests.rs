use super::*;

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u32;
    let mut bytes = length.to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags, 0, 0, 0, 1]);
    bytes.extend(payload);
    bytes
}

/// A header block: `:method: POST` by index, an authority, and another header with a percent sign.
fn block(authority: &[u8]) -> Vec<u8> {
    let mut block = vec![0x83, 0x41, authority.len() as u8];
    block.extend(authority);
    block.extend(b"\x40\x03a%b\x03c%d\x0f\x0d\x02%%\x1f\x80\x01\x01%\x82");
    block
}

fn connection(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    parts.iter().for_each(|part| bytes.extend(part));
    bytes
}

/// Walks in pieces of each size, and expects the same result of all.
fn walked(bytes: &[u8]) -> Vec<u8> {
    let whole = |size: usize| {
        let (mut bytes, mut walker) = (bytes.to_vec(), Walker::default());
        bytes.chunks_mut(size).for_each(|piece| walker.walk(piece));
        bytes
    };
    let expected = whole(bytes.len());
    (1..20).for_each(|size| assert_eq!(whole(size), expected, "in pieces of {size}"));
    expected
}

#[test]
fn only_the_percent_signs_of_the_authority_are_replaced() {
    let (before, after) = (block(b"var%2Frun%2Fsocket"), block(b"var-2Frun-2Fsocket"));
    let padded = |block: &[u8]| [b"\x03", &b"\0\0\0\0\x10"[..], block, b"%%%"].concat();
    let with = |block: &[u8]| {
        connection(&[
            frame(0x4, 0, b"%%%%%%"),
            frame(HEADERS, 0x4, block),
            frame(0x0, 0, b"A%%%%"),
            frame(HEADERS, 0x4 | PADDED | PRIORITY, &padded(block)),
            frame(HEADERS, 0x4 | PRIORITY, &[b"%%%%%", block].concat()),
            frame(HEADERS, 0, &block[..7]),
            frame(CONTINUATION, 0, &block[7..9]),
            frame(CONTINUATION, 0, b""),
            frame(CONTINUATION, 0x4, &block[9..]),
            frame(0x6, 0, b"%%%%%%%%"),
        ])
    };
    assert_eq!(walked(&with(&before)), walked(&with(&after)));
    assert_eq!(walked(&with(&before)), with(&after));
}

#[test]
fn a_name_that_is_spelt_out_is_recognised() {
    let with = |name: &[u8], value: &[u8]| {
        let lengths = (name.len() as u8, value.len() as u8);
        connection(&[frame(HEADERS, 4, &[&[0x40, lengths.0], name, &[lengths.1], value, b"\x83"].concat())])
    };
    assert_eq!(walked(&with(b":authority", b"%2Fvar%2Fs")), with(b":authority", b"-2Fvar-2Fs"));
    for other in [&b":authoritx"[..], b":authority2", b":authorit", b"authority"] {
        assert_eq!(walked(&with(other, b"%2F")), with(other, b"%2F"));
    }
}

#[test]
fn long_and_coded_authorities_are_followed() {
    let long: Vec<u8> = b"%2F".iter().copied().cycle().take(300).collect();
    // 300 = 127 + 173, and 173 = 0x2d + (1 << 7).
    let block = |value: &[u8]| [b"\x01\x7f\xad\x01", value, b"\x83"].concat();
    let replaced: Vec<u8> = long.iter().map(|byte| if *byte == b'%' { b'-' } else { *byte }).collect();
    let with = |value: &[u8]| connection(&[frame(HEADERS, 4, &block(value)), frame(HEADERS, 4, &block(value))]);
    assert_eq!(walked(&with(&long)), with(&replaced));
    let coded = connection(&[frame(HEADERS, 4, b"\x41\x83%%%")]);
    assert_eq!(walked(&coded), coded);
}

#[test]
fn any_bytes_are_followed_without_a_panic() {
    let mut state = 1u64;
    for length in 0..2000 {
        let mut bytes: Vec<u8> = (0..length % 400)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        // Short frames of the kinds that are looked into.
        for at in (24..bytes.len().saturating_sub(9)).step_by(40) {
            bytes[at..at + 4].copy_from_slice(&[0, 0, 31, if at % 80 == 24 { HEADERS } else { CONTINUATION }]);
        }
        let before = bytes.clone();
        Walker::default().walk(&mut bytes);
        let changed = before.iter().zip(&bytes).filter(|(before, after)| before != after);
        assert!(changed.into_iter().all(|pair| pair == (&b'%', &b'-')));
    }
}

#[test]
fn a_header_block_is_as_long_as_its_frames_announce() {
    let mut walker = Walker::default();
    walker.walk(&mut [0; PREFACE]);
    let mut header = |kind: u8, length: usize| {
        walker.walk(&mut [0, (length >> 8) as u8, length as u8, kind, 0, 0, 0, 0, 1]);
        walker.walk(&mut vec![0; length]);
        walker.headers
    };
    const DATA: u8 = 0;
    assert_eq!(header(HEADERS, 16_000), 16_000);
    assert_eq!(header(CONTINUATION, 16_000), 32_000);
    assert_eq!(header(CONTINUATION, 1), 32_001);
    assert_eq!(header(DATA, 16_000), 32_001);
    assert_eq!(header(HEADERS, 30), 30);
}

/// What comes next is told at each byte: whatever belongs to no header block can be read without a stream to come of it.
#[test]
fn bytes_that_open_a_stream_are_distinguished() {
    let padded = [&[2][..], &block(b"a"), &[0, 0]].concat();
    let parts = [
        frame(4, 0, &[0, 4, 0, 1, 0, 0]),
        frame(1, 0xc, &padded),
        frame(0, 0, b"data"),
        frame(9, 4, b"\x83"),
        frame(6, 0, &[0; 8]),
    ];
    let bytes = connection(&parts);
    let opens: Vec<_> = [&vec![false; 24], &vec![false; 15]]
        .into_iter()
        .cloned()
        .chain([[vec![false; 9], vec![true; padded.len()]].concat()])
        .chain([vec![false; 13], [vec![false; 9], vec![true]].concat(), vec![false; 17]])
        .flatten()
        .collect();
    let mut walker = Walker::default();
    for (at, byte) in bytes.into_iter().enumerate() {
        let (harmless, rest) = (walker.harmless(), walker.rest());
        assert_eq!(harmless == 0, opens[at], "byte {at}");
        assert!(rest > 0, "byte {at}");
        // No more than is harmless, and as much as can be.
        let run = opens[at..].iter().take_while(|opens| !**opens).count();
        assert!(harmless <= run && rest >= harmless, "byte {at}");
        walker.walk(&mut [byte]);
    }
    assert_eq!(walker.frames, 5);
}

#[test]
fn headers_are_counted_however_short_they_are() {
    let mut walker = Walker::default();
    let parts = [frame(1, 0, &[0x82; 40]), frame(9, 4, &[0xbe; 40]), frame(1, 4, &block(b"a"))];
    let mut bytes = connection(&parts);
    let second = bytes.len() - parts[2].len();
    walker.walk(&mut bytes[..second]);
    assert_eq!(walker.fields, 80);
    walker.walk(&mut bytes[second..]);
    assert_eq!(walker.fields, 6);
}
