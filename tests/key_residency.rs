//! Where key bytes are to be found by root: nowhere in secret memory; and where the arena can be read, the live key
//! and no retired one. These tests start the shim as another user, so they need root.

mod common;

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::FileExt,
};

use common::{Logged, QUIET, Site};
use nix::sys::signal::Signal;
use openssl::pkey::PKey;
use testkit::{Failure, OrFail, confined::Confinement, sds};

type Outcome = Result<(), Failure>;

const ROTATIONS: usize = 30;
/// Eight bytes of a key stand nowhere by chance.
const WINDOW: usize = 8;

/// What to look for: windows of each key, and which key they are of.
#[derive(Default)]
struct Needles(HashMap<[u8; WINDOW], usize>);

impl Needles {
    /// The key as a number in both byte orders, and as base64 where it stands in PEM, with and without the newline.
    fn add(&mut self, key: usize, pem: &str) -> Result<(), Failure> {
        let private = PKey::private_key_from_pem(pem.as_bytes()).or_fail("parse the key")?;
        let scalar = private.ec_key().or_fail("an EC key")?.private_key().to_vec_padded(32).or_fail("the scalar")?;
        let der = private.private_key_to_pkcs8().or_fail("encode the key")?;
        let at = der.windows(32).position(|window| window == scalar).expect("PKCS#8 holds the scalar");
        let (from, to) = ((at * 8).div_ceil(6), (at + 32) * 8 / 6);
        let text: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let wrapped = format!("{}\n{}", &text[from..64], &text[64..to]);
        let reversed: Vec<u8> = scalar.iter().rev().copied().collect();
        for bytes in [&scalar[..], &reversed, &text.as_bytes()[from..to], wrapped.as_bytes()] {
            for window in bytes.windows(WINDOW) {
                self.0.insert(window.try_into().expect("of that size"), key);
            }
        }
        Ok(())
    }

    /// How many windows of each key stand in these bytes.
    fn count(&self, bytes: &[u8], found: &mut HashMap<usize, usize>) {
        for window in bytes.windows(WINDOW) {
            // Most of memory is zeros, and hashing is slow.
            if window != [0; WINDOW]
                && let Some(key) = self.0.get(window)
            {
                *found.entry(*key).or_default() += 1;
            }
        }
    }
}

/// What root finds in the memory of a process.
struct Search {
    /// Windows found, by key.
    found: HashMap<usize, usize>,
    readable: usize,
    /// Bytes that the kernel does not let anybody read, in mappings that can be read from inside.
    refused: usize,
}

fn search(pid: u32, needles: &Needles) -> Result<Search, Failure> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).or_fail("read the mappings")?;
    let memory = File::open(format!("/proc/{pid}/mem")).or_fail("open the memory")?;
    let mut search = Search { found: HashMap::new(), readable: 0, refused: 0 };
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').expect("the kernel's format");
        let (start, end) = range.split_once('-').expect("the kernel's format");
        let number = |text| u64::from_str_radix(text, 16).expect("the kernel's format");
        let mut bytes = vec![0; (number(end) - number(start)) as usize];
        match memory.read_exact_at(&mut bytes, number(start)) {
            Ok(()) => {
                search.readable += bytes.len();
                needles.count(&bytes, &mut search.found);
            }
            Err(_) if rest.starts_with('r') => search.refused += bytes.len(),
            Err(_) => {}
        }
    }
    Ok(search)
}

/// Rotates many times, and returns what is found then, the last key's number and the shim.
async fn rotate_and_search(confinement: Confinement) -> Result<(Search, usize), Failure> {
    let site = Site::new().await?;
    let mut shim = Logged(site.shim().confined(confinement).start()?);
    let client = shim.connect().await?;
    let mut stream = client.stream();
    stream.send(sds::request(&["default"]));
    let mut needles = Needles::default();
    let mut answer = stream.recv().await?;
    for key in 0..=ROTATIONS {
        if key > 0 {
            shim.signal(Signal::SIGUSR1)?;
            answer = stream.recv().await?;
        }
        let secret = sds::secrets(&answer)?.remove(0);
        needles.add(key, &secret.key_pem)?;
        stream.send(sds::ack(&answer, &["default"]));
    }
    // The last acknowledgement is taken, and the process sleeps.
    stream.expect_silence(QUIET).await?;
    Ok((search(shim.pid(), &needles)?, ROTATIONS))
}

#[tokio::test]
async fn root_finds_no_byte_of_any_key_outside_of_secret_memory() -> Outcome {
    let (search, _) = rotate_and_search(Confinement::default()).await?;
    println!(
        "{} bytes read, {} bytes refused by the kernel, {:?} found",
        search.readable, search.refused, search.found
    );
    assert!(search.found.is_empty(), "windows found, by key: {:?}", search.found);
    assert!(search.refused >= (2 << 20) - 3 * 4096, "the arena can be read");
    assert!(search.readable > 4 << 20, "the rest was not read");
    Ok(())
}

/// The same search where the arena can be read: it must find the live key, or it could find nothing at all; and no
/// key that was retired.
#[tokio::test]
async fn where_the_arena_can_be_read_it_holds_the_live_key_and_no_retired_one() -> Outcome {
    let confinement = Confinement { without_secret_memory: true, ..Confinement::default() };
    let (search, live) = rotate_and_search(confinement).await?;
    println!("{} bytes read, {:?} found", search.readable, search.found);
    // One copy as a number in OpenSSL's key, and one as text in the encoded secret that all streams share: 32 bytes
    // have 25 windows, 42 characters and a newline have 36.
    assert_eq!(search.found.get(&live), Some(&(25 + 36)), "the live key must be found, and not more often");
    let retired: Vec<_> = search.found.keys().filter(|key| **key != live).collect();
    assert!(retired.is_empty(), "retired keys {retired:?} of {live} are still there: {:?}", search.found);
    Ok(())
}
