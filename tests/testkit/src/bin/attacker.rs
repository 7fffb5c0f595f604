//! Attacks a socket for so many seconds, and says what came of it: `attacker ATTACK SOCKET SECONDS`. A process of its own,
//! because a server can tell processes apart.

use std::{path::Path, time::Duration};

use testkit::{hostile::Attack, rng::Rng};
use tokio::{runtime, time::Instant};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [attack, socket, seconds] = &arguments[..] else { panic!("attacker ATTACK SOCKET SECONDS") };
    let attack = Attack::named(attack).expect("an attack of this name");
    let lasting = Duration::from_secs_f64(seconds.parse().expect("a number of seconds"));
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let count = runtime.block_on(async {
        let (mut rng, end, mut count) = (Rng::seeded(), Instant::now() + lasting, 0);
        println!("begun");
        while Instant::now() < end {
            count += attack.run_for(Path::new(socket), &mut rng, end.saturating_duration_since(Instant::now())).await;
        }
        count
    });
    println!("{attack:?}: {count}");
}
