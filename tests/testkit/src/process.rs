//! A child process whose output can be read and awaited, and which does not outlive its owner.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{Failure, OrFail, PATIENCE, POLL};

/// A running program; killed when it is dropped.
pub struct Process {
    name: String,
    child: Child,
    pid: u32,
    log: Log,
}

impl Process {
    /// Starts `program` in `directory` with exactly the variables in `env`.
    ///
    /// The child gets a process group of its own, so that a Ctrl-C on the terminal reaches only its owner, which then
    /// ends it in order.
    pub fn start(
        name: &str,
        program: &Path,
        arguments: &[String],
        env: &[(String, String)],
        directory: &Path,
    ) -> Result<Self, Failure> {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(env.iter().cloned()).current_dir(directory).stdin(Stdio::null());
        Self::spawn(name, program, command)
    }

    /// Starts a `program` that ends when its standard input is closed: so it does even when we are killed.
    pub fn start_tethered(name: &str, program: &Path, arguments: &[String]) -> Result<Self, Failure> {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().stdin(Stdio::piped());
        Self::spawn(name, program, command)
    }

    fn spawn(name: &str, program: &Path, mut command: Command) -> Result<Self, Failure> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().or_fail(format!("start {name} ({})", program.display()))?;
        let pid = child.id().ok_or_else(|| Failure::new(format!("{name} ended before it had a pid")))?;
        let log = Log::default();
        if let Some(pipe) = child.stdout.take() {
            log.read(pipe);
        }
        if let Some(pipe) = child.stderr.take() {
            log.read(pipe);
        }
        Ok(Self { name: name.to_owned(), child, pid, log })
    }

    /// The name that failures call this process by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it wrote to both of its outputs.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Waits until a line contains `text`, at once when one does already.
    pub async fn wait_for_log(&self, text: &str) -> Result<String, Failure> {
        self.wait_for_log_after(0, text).await
    }

    /// Like [`Process::wait_for_log`], looking only at lines after the first `mark` ones (see [`Log::mark`]).
    pub async fn wait_for_log_after(&self, mark: usize, text: &str) -> Result<String, Failure> {
        self.wait_for_log_within(mark, text, PATIENCE).await
    }

    /// The same for what takes its time.
    pub async fn wait_for_log_within(&self, mark: usize, text: &str, limit: Duration) -> Result<String, Failure> {
        let line = |lines: &[String]| lines.iter().skip(mark).find(|line| line.contains(text)).cloned();
        self.wait_within(limit, &format!("the log line {text:?}"), line).await
    }

    /// Waits until `look` finds something in all lines so far; `what` names it.
    pub async fn wait_until<T>(&self, what: &str, look: impl Fn(&[String]) -> Option<T>) -> Result<T, Failure> {
        self.wait_within(PATIENCE, what, look).await
    }

    async fn wait_within<T>(
        &self,
        limit: Duration,
        what: &str,
        look: impl Fn(&[String]) -> Option<T>,
    ) -> Result<T, Failure> {
        match timeout(limit, self.log.find(look)).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(self.failure(format!("{} ended without {what}", self.name))),
            Err(_) => Err(self.failure(format!("not {what} from {} within {limit:?}", self.name))),
        }
    }

    /// Waits until the process has ended by itself or by a signal, and its output has been read to the end.
    pub async fn wait_exit(&mut self) -> Result<ExitStatus, Failure> {
        let Ok(status) = timeout(PATIENCE, self.child.wait()).await else {
            return Err(self.failure(format!("{} did not end within {PATIENCE:?}", self.name)));
        };
        let status = status.or_fail(format!("wait for {}", self.name))?;
        // A grandchild may hold the pipes open: its output is then not waited for.
        let _ = timeout(PATIENCE, self.log.closed()).await;
        Ok(status)
    }

    /// The exit status when the process has ended, `None` while it runs.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal; nothing happens when the process has ended and been waited for.
    pub fn signal(&self, signal: Signal) -> crate::Result {
        // `Child::id` is `None` once the process was reaped: its number may belong to somebody else by then.
        match self.child.id().and_then(|id| i32::try_from(id).ok()) {
            Some(id) => kill(Pid::from_raw(id), signal).or_fail(format!("signal {}", self.name)),
            None => Ok(()),
        }
    }

    /// SIGTERM, and waits for the end.
    pub async fn terminate(&mut self) -> Result<ExitStatus, Failure> {
        self.signal(Signal::SIGTERM)?;
        self.wait_exit().await
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(&mut self) -> Result<ExitStatus, Failure> {
        self.signal(Signal::SIGKILL)?;
        self.wait_exit().await
    }

    /// Waits for what nobody announces, such as a file that this process is to write. `what` completes "not …".
    ///
    /// # Errors
    /// When `look` does not see it in time.
    pub async fn until<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(seen) = look() {
                return Ok(seen);
            }
            if Instant::now() > deadline {
                return Err(self.failure(format!("not {what} within {PATIENCE:?}")));
            }
            sleep(POLL).await;
        }
    }

    /// A failure that shows this process's log.
    pub fn failure(&self, what: impl Into<String>) -> Failure {
        self.explain(Failure::new(what))
    }

    /// Adds this process's log to a failure.
    pub fn explain(&self, failure: Failure) -> Failure {
        failure.with_log(&format!("{} (pid {})", self.name, self.pid), &self.log.lines())
    }
}

/// The binary that `variable` names, else `default` in the workspace; a failure says how to get it.
pub(crate) fn binary(variable: &str, default: &str, remedy: &str) -> Result<PathBuf, Failure> {
    let path = match std::env::var_os(variable) {
        // The child has another working directory.
        Some(path) => std::path::absolute(&path).or_fail(format!("resolve {variable}"))?,
        None => crate::workspace().join(default),
    };
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::new(format!("{} is missing: {remedy}, or set {variable}", path.display())))
}

/// The lines of a process, shared with the tasks that read them.
#[derive(Clone)]
pub struct Log {
    lines: Arc<Mutex<Vec<String>>>,
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Copy, Default)]
struct Progress {
    lines: usize,
    open_pipes: usize,
}

impl Default for Log {
    fn default() -> Self {
        Self { lines: Arc::default(), progress: watch::Sender::new(Progress::default()) }
    }
}

impl Log {
    /// All lines so far, in the order of their arrival.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a line contains `text`.
    pub fn contains(&self, text: &str) -> bool {
        self.count(text) > 0
    }

    /// How many lines contain `text`.
    pub fn count(&self, text: &str) -> usize {
        self.lines().iter().filter(|line| line.contains(text)).count()
    }

    /// The number of lines so far: what comes later is after this mark.
    pub fn mark(&self) -> usize {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    async fn find<T>(&self, look: impl Fn(&[String]) -> Option<T>) -> Option<T> {
        let mut progress = self.progress.subscribe();
        loop {
            // Marked as seen before the look at the lines: a line that comes in between wakes the wait below.
            let ended = progress.borrow_and_update().open_pipes == 0;
            if let Some(found) = look(&self.lines()) {
                return Some(found);
            }
            if ended || progress.changed().await.is_err() {
                return None;
            }
        }
    }

    async fn closed(&self) {
        let _ = self.progress.subscribe().wait_for(|progress| progress.open_pipes == 0).await;
    }

    fn read(&self, pipe: impl AsyncRead + Send + Unpin + 'static) {
        self.progress.send_modify(|progress| progress.open_pipes += 1);
        let log = self.clone();
        tokio::spawn(async move {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
                log.push(String::from_utf8_lossy(&line).trim_end().to_owned());
                line.clear();
            }
            log.progress.send_modify(|progress| progress.open_pipes -= 1);
        });
    }

    fn push(&self, line: String) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        self.progress.send_modify(|progress| progress.lines += 1);
    }
}
