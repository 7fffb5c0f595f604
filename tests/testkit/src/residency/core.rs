use std::{fs, path::Path};

use tokio::{process::Command, sync::Mutex, sync::MutexGuard};

use super::Range;
use crate::{Failure, OrFail};

/// A core image: what memory it holds, and its notes, among them the registers of every thread.
pub struct CoreImage {
    /// The memory.
    pub memory: Vec<Range>,
    /// The notes as they are.
    pub notes: Vec<u8>,
}

impl CoreImage {
    /// Reads a core file of a 64-bit little-endian process.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let file = fs::read(path).or_fail(format!("read {}", path.display()))?;
        Self::parse(&file).ok_or_else(|| Failure::new(format!("{} is no core file, or was cut off", path.display())))
    }

    /// Whether the vector registers are among the notes.
    pub fn has_vector_registers(&self) -> bool {
        // NT_X86_XSTATE, and the name of those who defined it.
        self.notes.windows(10).any(|window| window == b"\x02\x02\0\0LINUX\0")
    }

    fn parse(file: &[u8]) -> Option<Self> {
        const LOAD: u64 = 1;
        const NOTE: u64 = 4;
        const CORE: u64 = 4;
        let number = |at: usize, bytes: usize| {
            let field = file.get(at..at + bytes)?;
            Some(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
        };
        if !file.starts_with(b"\x7fELF\x02\x01") || number(16, 2)? != CORE {
            return None;
        }
        let (headers, size, count) = (number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize);
        let mut image = Self { memory: Vec::new(), notes: Vec::new() };
        for header in (0..count).map(|index| headers + index * size) {
            let (offset, bytes) = (number(header + 8, 8)? as usize, number(header + 32, 8)? as usize);
            let bytes = file.get(offset..offset + bytes)?;
            match number(header, 4)? {
                LOAD => image.memory.push(Range { start: number(header + 16, 8)?, bytes: bytes.to_owned() }),
                NOTE => image.notes.extend(bytes),
                _ => {}
            }
        }
        Some(image)
    }
}

/// What gdb, as root, gets of a running process.
pub struct Gdb {
    /// The image that its command `gcore` writes.
    pub image: CoreImage,
    /// Vector registers that are not zero.
    pub vector_registers: Vec<String>,
    /// What it said.
    pub said: String,
}

/// Attaches gdb to a process and has it write, in `directory`, an image with `gcore`; `everything` includes what the
/// process asked to leave out.
pub async fn gcore(pid: u32, directory: &Path, everything: bool) -> Result<Gdb, Failure> {
    let [image, registers] = ["image", "registers"].map(|name| directory.join(format!("{name}.{pid}")));
    let excluded = format!("set dump-excluded-mappings {}", if everything { "on" } else { "off" });
    let mut command = Command::new("gdb");
    command.args(["-nx", "-batch", "-p", &pid.to_string(), "-ex", &excluded]);
    command.args(["-ex", &format!("gcore {}", image.display())]);
    command.args(["-ex", &format!("maint print raw-registers {}", registers.display())]).kill_on_drop(true);
    let output = command.output().await.or_fail("run gdb (`make gdb` installs it)")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let read = || -> Result<_, Failure> {
        let text = fs::read_to_string(&registers).or_fail("read the registers")?;
        Ok((CoreImage::read(&image)?, vector_registers(&text)?))
    };
    let (image_read, vector_registers) = read().map_err(|failure| failure.remark(&said))?;
    for file in [image, registers] {
        fs::remove_file(file).or_fail("remove the image")?;
    }
    Ok(Gdb { image: image_read, vector_registers, said })
}

/// Those that are not zero, in gdb's table: the name is the first word of a line, the value the last.
fn vector_registers(table: &str) -> Result<Vec<String>, Failure> {
    let lines = table.lines().filter_map(|line| Some((line.split_whitespace().next()?, line.split_once(" 0x")?.1)));
    let is_vector = |name: &str| ["xmm", "ymm", "zmm"].iter().any(|kind| name.starts_with(kind));
    let vectors: Vec<_> = lines.filter(|(name, _)| is_vector(name)).collect();
    if vectors.len() < 16 {
        return Err(Failure::new(format!("gdb told of {} vector registers", vectors.len())));
    }
    let in_use = vectors.into_iter().filter(|(_, value)| value.trim().bytes().any(|digit| digit != b'0'));
    Ok(in_use.map(|(name, value)| format!("{name}={value}")).collect())
}

/// The kernel writes core files into the working directory of the process that dies, as long as this is held.
///
/// The pattern is the whole machine's. Where it leads elsewhere it is replaced and put back at the end, one test at a
/// time; no other process is harmed, as a core of theirs would meanwhile be a file where they run.
pub struct CorePattern {
    before: Option<String>,
    _alone: MutexGuard<'static, ()>,
}

impl CorePattern {
    const FILE: &str = "/proc/sys/kernel/core_pattern";

    /// Waits for the other tests of this program that hold it.
    pub async fn hold() -> Result<Self, Failure> {
        static ALONE: Mutex<()> = Mutex::const_new(());
        let alone = ALONE.lock().await;
        let pattern = fs::read_to_string(Self::FILE).or_fail("read the pattern of core files")?;
        let here = !pattern.starts_with('|') && !pattern.contains('/') && !pattern.trim().is_empty();
        if !here {
            fs::write(Self::FILE, "core").or_fail("have cores written into the working directory")?;
        }
        Ok(Self { before: (!here).then_some(pattern), _alone: alone })
    }

    /// The core file in `directory`, taken away from there.
    pub fn take(&self, directory: &Path) -> Result<CoreImage, Failure> {
        for entry in fs::read_dir(directory).or_fail("list the working directory")? {
            let path = entry.or_fail("list the working directory")?.path();
            if path.is_file()
                && let Ok(image) = CoreImage::read(&path)
            {
                fs::remove_file(&path).or_fail("remove the core")?;
                return Ok(image);
            }
        }
        Err(Failure::new(format!("there is no core file in {}", directory.display())))
    }
}

impl Drop for CorePattern {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = fs::write(Self::FILE, before);
        }
    }
}
