use super::{reader::Reader, variables};

/// What must be there before the command of `sds-shim exec` is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitFor {
    /// The SDS socket.
    Socket,
    /// The first certificate.
    Certificate,
}

pub(super) fn read(reader: &mut Reader<'_>, from_request: bool) -> WaitFor {
    let wait = reader.choice(&variables::SDS_SHIM_WAIT, [WaitFor::Socket, WaitFor::Certificate]);
    if from_request && wait == WaitFor::Certificate {
        reader.mistake(
            &variables::SDS_SHIM_WAIT,
            "with SDS_SHIM_TOKEN_SOURCE=request there is no certificate before the command sends its token",
        );
    }
    wait
}
