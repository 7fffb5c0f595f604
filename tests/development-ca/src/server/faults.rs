//! Which fault is due: first the queue, then the one that is set.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::fault::Fault;
use crate::flood::Flood;

/// The script.
#[derive(Default)]
pub(crate) struct Faults(Mutex<Script>);

#[derive(Default)]
struct Script {
    queue: VecDeque<Fault>,
    lasting: Option<Fault>,
}

impl Faults {
    pub(super) fn set(&self, fault: Option<Fault>) {
        self.script().lasting = fault;
    }

    pub(super) fn push(&self, fault: Fault) {
        self.script().queue.push_back(fault);
    }

    /// The fault for a call that has arrived.
    pub(crate) fn take_for_call(&self) -> Option<Fault> {
        self.script().take(|fault| !matches!(fault, Fault::RefuseClientCertificate | Fault::Flood(_)))
    }

    /// Whether a new connection is to be closed.
    pub(super) fn take_drop(&self) -> bool {
        self.script().take(|fault| matches!(fault, Fault::DropConnection)).is_some()
    }

    /// What a new connection is flooded with.
    pub(super) fn take_flood(&self) -> Option<Flood> {
        match self.script().take(|fault| matches!(fault, Fault::Flood(_))) {
            Some(Fault::Flood(flood)) => Some(flood),
            _ => None,
        }
    }

    /// Whether a client certificate is to be refused.
    pub(super) fn take_refusal(&self) -> bool {
        self.script().take(|fault| matches!(fault, Fault::RefuseClientCertificate)).is_some()
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Script {
    /// A queued fault of another kind keeps its place and holds back those behind it, but not the lasting one.
    fn take(&mut self, due: impl Fn(&Fault) -> bool) -> Option<Fault> {
        match self.queue.front() {
            Some(fault) if due(fault) => self.queue.pop_front(),
            _ => self.lasting.clone().filter(due),
        }
    }
}
