//! The pod entrypoint's part: signals as events, and the command that is started, followed and outlived by nothing
//! of ours.

mod child;
mod signals;
mod successor;
mod supervisor;

pub use child::{Launch, LaunchError};
pub use signals::{ARE_WE_ALIVE, Event, Signals};
pub use successor::stand_by;
pub use supervisor::Supervisor;
