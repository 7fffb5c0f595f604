//! The binary: serve, token, and what it says to mistakes.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use common::{Connect, SLEEP, TestDir, csr};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_development-ca"));
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary runs")
}

/// A `serve` process, ended with the test whatever happens.
struct Serving {
    child: Child,
    address: SocketAddr,
}

impl Serving {
    fn start(dir: &Path) -> Serving {
        let dir = dir.to_str().expect("UTF-8");
        let mut command = command(&["serve", "--dir", dir, "--listen", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the binary runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("it prints a line");
        assert!(line.starts_with("development CA, never for production: listening on "), "{line}");
        let address = line.split_whitespace().last().and_then(|address| address.parse().ok());
        Serving { child, address: address.unwrap_or_else(|| panic!("no address in {line:?}")) }
    }

    /// The exit code after SIGTERM.
    fn terminate(&mut self) -> Option<i32> {
        let pid = i32::try_from(self.child.id()).expect("a pid fits");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it is ours and running");
        self.child.wait().expect("it is our child").code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Both fail once the process is gone, which is the aim.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
async fn tokens_and_roots_of_the_directory_outlive_the_process() {
    let dir = TestDir::new("serve");
    let state = dir.path("state");
    let state_text = state.to_str().expect("UTF-8");
    let mut first = Serving::start(&state);
    let root = fs::read_to_string(state.join("root-cert.pem")).expect("the root is there");
    assert!(fs::read_to_string(state.join("jwks.json")).expect("the JWKS is there").contains("\"ES256\""));
    for entry in fs::read_dir(&state).expect("the directory is there") {
        let mode = entry.and_then(|entry| entry.metadata()).expect("an entry").permissions().mode();
        assert_eq!(mode & 0o077, 0, "only its owner reads it");
    }
    let minted = run(&["token", "--dir", state_text, "--namespace", "foo", "--service-account", "sleep"]);
    assert!(minted.status.success());
    let token = String::from_utf8(minted.stdout).expect("a token is ASCII");
    let call = async |address| {
        let mut client = Connect::default().to(address, &root).await.expect("the handshake succeeds");
        client.call(&csr(SLEEP), Some(token.trim())).await
    };
    assert!(call(first.address).await.is_ok());
    assert_eq!(first.terminate(), Some(0));
    let second = Serving::start(&state);
    assert!(call(second.address).await.is_ok());
}

#[tokio::test]
async fn a_token_can_be_written_as_a_projected_volume() {
    let dir = TestDir::new("projected");
    let (state, output) = (dir.path("state"), dir.path("tokens"));
    let serving = Serving::start(&state);
    let texts = [&state, &output].map(|path| path.to_str().expect("UTF-8").to_owned());
    let arguments = ["token", "--dir", &texts[0], "--namespace", "foo", "--service-account", "sleep"];
    let written = run(&[&arguments[..], &["--algorithm", "RS256", "--ttl", "10m", "--output", &texts[1]]].concat());
    assert!(written.status.success() && written.stdout.is_empty());
    let token = fs::read_to_string(output.join("istio-token")).expect("the token is there");
    let root = fs::read_to_string(state.join("root-cert.pem")).expect("the root is there");
    let mut client = Connect::default().to(serving.address, &root).await.expect("the handshake succeeds");
    assert!(client.call(&csr(SLEEP), Some(&token)).await.is_ok());
}

#[test]
fn mistakes_are_named() {
    let dir = TestDir::new("mistakes");
    let empty = dir.path("empty");
    let empty = empty.to_str().expect("UTF-8");
    let usage = run(&["serve"]);
    let text = String::from_utf8_lossy(&usage.stderr).into_owned();
    assert_eq!(usage.status.code(), Some(64));
    assert!(text.contains("--dir is missing") && text.contains("never for production"), "{text}");
    let unserved = run(&["token", "--dir", empty, "--namespace", "foo", "--service-account", "sleep"]);
    let text = String::from_utf8_lossy(&unserved.stderr).into_owned();
    assert_eq!(unserved.status.code(), Some(1));
    assert!(text.contains("token-rsa-key.pem"), "{text}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listen = taken.local_addr().expect("an address").to_string();
    let busy = run(&["serve", "--dir", dir.path("busy").to_str().expect("UTF-8"), "--listen", &listen]);
    assert_eq!(busy.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&busy.stderr).contains(&listen));
    assert!(run(&["--help"]).status.success());
}
