//! Debian packages, and a real systemd as the first process: minimal systems of Debian 12 and 13, in containers. Where
//! the machine does not let us start containers nothing can be tested, which is said past the test harness.

mod machine;
mod packages;
mod systemd;

use std::io::Write as _;

/// Whether there can be containers.
fn possible() -> bool {
    let possible = testkit::confined::holds_sys_admin();
    if !possible {
        let _ = writeln!(std::io::stderr(), "NOT TESTED: this machine lets us start no containers (no CAP_SYS_ADMIN)");
    }
    possible
}
