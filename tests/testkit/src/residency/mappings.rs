use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use super::Range;
use crate::{Failure, OrFail};

/// A mapping of a process, from `/proc/PID/smaps`.
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// The address behind the last.
    pub end: u64,
    /// Whether the process itself may read it.
    pub readable: bool,
    /// The file or the kernel's name for it; often empty.
    pub name: String,
    /// KiB in swap.
    pub swap: u64,
    /// Whether the process asked the kernel to leave it out of core dumps.
    pub left_out_of_cores: bool,
}

impl Mapping {
    /// The bytes' number.
    pub fn size(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether it is secret memory.
    pub fn is_secret(&self) -> bool {
        self.name.starts_with("/secretmem")
    }

    /// Whether keys belong there, where there is no secret memory: only the arena is left out of core dumps.
    pub fn is_arena(&self) -> bool {
        self.readable && self.left_out_of_cores && !self.name.starts_with("[v")
    }
}

/// The mappings of a process.
pub fn mappings(pid: u32) -> Result<Vec<Mapping>, Failure> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).or_fail("read the mappings")?;
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(mapping) = head(line) {
            mappings.push(mapping);
        } else if let (Some(mapping), Some((name, value))) = (mappings.last_mut(), line.split_once(':')) {
            match name {
                "Swap" => mapping.swap = value.trim().trim_end_matches(" kB").parse().or_fail("read the mappings")?,
                "VmFlags" => mapping.left_out_of_cores = value.split_whitespace().any(|flag| flag == "dd"),
                _ => {}
            }
        }
    }
    Ok(mappings)
}

/// `START-END PERMISSIONS OFFSET DEVICE INODE NAME`
fn head(line: &str) -> Option<Mapping> {
    let (start, rest) = line.split_once('-')?;
    let (end, rest) = rest.split_once(' ')?;
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        readable: rest.starts_with('r'),
        name: rest.split_whitespace().nth(4).unwrap_or_default().to_owned(),
        swap: 0,
        left_out_of_cores: false,
    })
}

/// What root reads of a process.
#[derive(Default)]
pub struct Memory {
    /// The arena's bytes, where it is not secret memory.
    pub arena: Vec<Range>,
    /// All other bytes.
    pub rest: Vec<Range>,
    /// How many bytes of secret memory there are, of which the kernel lets nobody read any.
    pub refused: usize,
}

impl Memory {
    /// All that could be read.
    pub fn ranges(&self) -> impl Iterator<Item = &Range> {
        self.arena.iter().chain(&self.rest)
    }
}

/// Reads `/proc/PID/mem`, every mapping.
pub fn memory(pid: u32) -> Result<Memory, Failure> {
    let file = File::open(format!("/proc/{pid}/mem")).or_fail("open the memory")?;
    let mut memory = Memory::default();
    for mapping in mappings(pid)? {
        let mut bytes = vec![0; mapping.size()];
        let read = file.read_exact_at(&mut bytes, mapping.start);
        let range = Range { start: mapping.start, bytes };
        match read {
            Ok(()) if mapping.is_arena() => memory.arena.push(range),
            Ok(()) => memory.rest.push(range),
            Err(_) if mapping.is_secret() => memory.refused += range.bytes.len(),
            Err(_) => {}
        }
    }
    Ok(memory)
}
