use std::{future::pending, ops::ControlFlow, process::ExitStatus};

use nix::sys::signal::Signal;
use tokio::sync::watch;
use tracing::{debug, info};

use super::{
    child::{Child, Launch, LaunchError, reap},
    signals::Event,
};
use crate::{config::WaitFor, store::View};

/// Whose life this process follows.
enum State {
    /// Nobody's.
    Alone,
    /// That of a command that starts once a certificate is held, or at once.
    Waiting(Box<Launch>, Option<watch::Receiver<View>>),
    /// That of a command that runs.
    Running(Child),
}

/// Starts the command when it is time, gives it the signals that come, and tells when this process is to end.
pub struct Supervisor(State);

impl Supervisor {
    /// Follows the command, if there is one. `view` is what the workload holds.
    pub fn new(launch: Option<Launch>, wait: WaitFor, view: Option<watch::Receiver<View>>) -> Self {
        let Some(launch) = launch else { return Self(State::Alone) };
        launch.adopt_orphans();
        if let Some((pid, _)) = locked::inherited_command() {
            return Self(State::Running(Child::inherited(pid, launch.name())));
        }
        let view = view.filter(|_| wait == WaitFor::Certificate);
        if view.is_some() {
            info!(program = launch.name(), "waiting for the first certificate before starting the command");
        }
        Self(State::Waiting(Box::new(launch), view))
    }

    /// Waits until the command is to be started, which may be never.
    pub async fn due(&mut self) {
        match &mut self.0 {
            State::Waiting(_, None) => {}
            State::Waiting(_, Some(view)) => {
                if view.wait_for(View::holds_certificate).await.is_err() {
                    // Whoever made certificates is gone: none will come.
                    pending().await
                }
            }
            State::Alone | State::Running(_) => pending().await,
        }
    }

    /// How the command ended while this process was crashing: nobody tells of it again.
    pub fn ended_before(&self) -> Option<ExitStatus> {
        let State::Running(child) = &self.0 else { return None };
        let (_, known) = locked::inherited_command()?;
        let status = known.or_else(|| reap(Some(child)))?;
        info!(program = child.name(), "command exited: {status}");
        Some(status)
    }

    /// Whether the command runs.
    pub fn is_running(&self) -> bool {
        matches!(self.0, State::Running(_))
    }

    /// Starts the command, if it was not yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self) -> Result<(), LaunchError> {
        if let State::Waiting(launch, _) = std::mem::replace(&mut self.0, State::Alone) {
            self.0 = State::Running(launch.start()?);
        }
        Ok(())
    }

    /// Sends a signal to the command, if it runs.
    pub fn send(&self, signal: Signal) {
        if let State::Running(child) = &self.0 {
            child.send(signal);
            info!(program = child.name(), "sending {signal} to the command");
        }
    }

    /// Follows a signal. Breaks when this process is to end: with the command, if it ever ran.
    pub fn signal(&self, event: Event) -> ControlFlow<Option<ExitStatus>> {
        match (&self.0, event.signal) {
            (State::Running(child), Signal::SIGCHLD) => {
                if let Some(status) = reap(Some(child)) {
                    info!(program = child.name(), "command exited: {status}");
                    return ControlFlow::Break(Some(status));
                }
            }
            (_, Signal::SIGCHLD) => {
                reap(None);
            }
            (State::Running(_), signal) if event.from_terminal => {
                debug!("not forwarding {signal}: the terminal has sent it to the command as well");
            }
            (State::Running(child), signal) => {
                child.send(signal);
                info!(program = child.name(), "forwarding {signal} to the command");
            }
            (_, signal @ (Signal::SIGTERM | Signal::SIGINT))
            | (State::Waiting(..), signal @ (Signal::SIGHUP | Signal::SIGQUIT)) => {
                info!("received {signal}, shutting down");
                return ControlFlow::Break(None);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}
