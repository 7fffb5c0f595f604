//! Debian packages, and a real systemd as the first process: minimal systems of Debian 12 and 13, in containers. Where
//! the machine does not let us start containers nothing can be tested, which is said past the test harness.

mod distribution;
mod machine;
mod packages;
mod scripts;
mod systemd;
mod unit;

use testkit::container::possible;
