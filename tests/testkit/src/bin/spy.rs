//! What a sidecar's command could try against the process that started it: reads its memory, attaches to it and signals it, and
//! does the same with a child of its own, to show that the attempts are such as succeed where nothing forbids them.
//! With the path of a socket it asks there for the HTTP/2 SETTINGS, as Istio's agent does when it starts.

use std::{
    fs::{self, File},
    io::{self, IoSliceMut, Read, Write},
    os::unix::{fs::FileExt, net::UnixStream},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    sys::{
        ptrace,
        signal::kill,
        uio::{RemoteIoVec, process_vm_readv},
    },
    unistd::{Pid, getppid},
};

fn main() {
    if let Some(socket) = std::env::args().nth(1) {
        return println!("settings: {}", told(settings(&socket)));
    }
    let mut control = Command::new("cat").stdin(Stdio::piped()).spawn().expect("start the control");
    for (name, pid) in [("control", Pid::from_raw(control.id().cast_signed())), ("parent", getppid())] {
        println!("{name} environ: {}", told(fs::read(format!("/proc/{pid}/environ"))));
        println!("{name} descriptors: {}", told(fs::read_dir(format!("/proc/{pid}/fd"))));
        println!("{name} maps: {}", told(fs::read(format!("/proc/{pid}/maps"))));
        println!("{name} mem: {}", told(mem(pid)));
        println!("{name} process_vm_readv: {}", told(vm(pid)));
        println!("{name} ptrace: {}", told(attach(pid)));
        // The question alone: whether it could be done.
        println!("{name} kill: {}", told(kill(pid, None).map_err(Into::into)));
    }
    drop(control.stdin.take());
    control.wait().expect("the control ends with its input");
}

fn told<T>(result: io::Result<T>) -> String {
    result.map_or_else(|error| format!("refused, {error}"), |_| "allowed".to_owned())
}

/// An address that is mapped: in the process itself where its mappings can be read, else one that would be as good.
fn address(pid: Pid) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let first = maps.split('-').next().and_then(|start| u64::from_str_radix(start, 16).ok());
    first.unwrap_or(0x40_0000)
}

fn mem(pid: Pid) -> io::Result<()> {
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut [0; 16], address(pid))
}

fn vm(pid: Pid) -> io::Result<()> {
    let base = usize::try_from(address(pid)).map_err(io::Error::other)?;
    process_vm_readv(pid, &mut [IoSliceMut::new(&mut [0; 16])], &[RemoteIoVec { base, len: 16 }])?;
    Ok(())
}

/// For as long as we live; unlike `PTRACE_ATTACH` it does not stop the process.
fn attach(pid: Pid) -> io::Result<()> {
    ptrace::seize(pid, ptrace::Options::empty())?;
    Ok(())
}

/// As patient as Istio's agent is.
fn settings(socket: &str) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
    let mut frame = [0; 9];
    stream.read_exact(&mut frame)?;
    if (frame[3], frame[4]) == (4, 0) { Ok(()) } else { Err(io::Error::other(format!("{frame:?}"))) }
}
