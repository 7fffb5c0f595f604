//! `secret_pages N` takes N pages of secret memory, or as many of them as the kernel gives, says how many, and holds
//! them until its standard input ends: the neighbour with whom shims share their user's limit in `make test-kernels`.
//! It is here because making secret memory is unsafe; it uses nothing of the crate.

use std::{
    fs::File,
    io::{self, IoSliceMut, Read as _},
    os::fd::FromRawFd as _,
    process::ExitCode,
    ptr, slice,
};

/// How many pages one `readv` can ask for: the kernel takes no more pieces.
const PIECES: usize = 1024;

fn main() -> ExitCode {
    let pages = std::env::args().nth(1).and_then(|text| text.parse().ok());
    match pages.map(take) {
        Some(Ok(had)) => println!("secret memory: {had}"),
        Some(Err(error)) if error.raw_os_error() == Some(libc::ENOSYS) => println!("secret memory: none"),
        Some(Err(error)) => println!("secret memory: {error}"),
        None => {
            eprintln!("usage: secret_pages N");
            return ExitCode::from(64);
        }
    }
    // The mapping lives as long as we do.
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
    ExitCode::SUCCESS
}

/// Makes so many and asks for each by a call that writes into it: one too many is an error of the call, and no signal.
fn take(pages: usize) -> io::Result<usize> {
    // SAFETY: the call takes no pointers.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(io::Error::other)?;
    let bytes = pages * page;
    // SAFETY: the call takes flags and no pointers.
    let raw = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; a descriptor fits an i32.
    let file = unsafe { File::from_raw_fd(raw as i32) };
    file.set_len(bytes as u64)?;
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&file);
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: without an address wish, the kernel places the mapping where nothing else is.
    let start = unsafe { libc::mmap(ptr::null_mut(), bytes, access, libc::MAP_SHARED, descriptor, 0) };
    if start == libc::MAP_FAILED {
        let error = io::Error::last_os_error();
        // So say kernels that count what is mapped.
        return if error.raw_os_error() == Some(libc::EAGAIN) { Ok(0) } else { Err(error) };
    }
    // SAFETY: the mapping is as long, ours alone and never unmapped; only the kernel writes to pages it has not got,
    // and answers with an error where it cannot.
    let mapping = unsafe { slice::from_raw_parts_mut(start.cast::<u8>(), bytes) };
    let mut zeros = File::open("/dev/zero")?;
    let mut had = 0;
    for part in mapping.chunks_mut(PIECES * page) {
        let mut pieces: Vec<_> = part.chunks_mut(page).map(|page| IoSliceMut::new(&mut page[..1])).collect();
        let wanted = pieces.len();
        match zeros.read_vectored(&mut pieces) {
            Ok(got) => {
                had += got;
                if got < wanted {
                    break;
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(had)
}
