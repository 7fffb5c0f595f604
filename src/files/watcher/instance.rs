//! The one inotify instance that all watchers share.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use locked::Readable;
use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
};
use tokio::sync::Notify;

/// `IN_MASK_ADD`, which the binding has no name for: two names, or two watchers, may lead to the same place.
const MASK_ADD: AddWatchFlags = AddWatchFlags::from_bits_retain(0x2000_0000);
/// What concerns whoever watches a place, whatever was watched for.
const ALWAYS: AddWatchFlags = AddWatchFlags::IN_UNMOUNT;

/// What a watcher wants to know of which places.
pub(super) type Wanted = BTreeMap<WatchDescriptor, AddWatchFlags>;

/// An inotify instance, of which a user has only few (`fs.inotify.max_user_instances`, often 128): all sidecars of a
/// node are one user, and the agent beside us needs some as well.
pub(super) struct Instance {
    inotify: Readable<Inotify>,
    places: Mutex<BTreeMap<WatchDescriptor, Place>>,
}

/// A place that is watched.
struct Place {
    path: PathBuf,
    /// What the kernel tells of it.
    mask: AddWatchFlags,
    watches: Vec<Watch>,
}

/// That somebody wants to be woken for some events of a place.
struct Watch {
    wake: Arc<Notify>,
    flags: AddWatchFlags,
}

thread_local! {
    /// The instance of this thread's runtime, for as long as somebody watches.
    static SHARED: RefCell<Weak<Instance>> = const { RefCell::new(Weak::new()) };
}

impl Instance {
    /// The instance of this thread, made when there is none. Call it inside a runtime.
    ///
    /// # Errors
    /// When the kernel has no more inotify instances or descriptors for us.
    pub(super) fn shared() -> io::Result<Arc<Self>> {
        SHARED.with_borrow_mut(|shared| {
            if let Some(instance) = shared.upgrade() {
                return Ok(instance);
            }
            let inotify = Readable::new(Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?)?;
            let instance = Arc::new(Self { inotify, places: Mutex::default() });
            *shared = Arc::downgrade(&instance);
            Ok(instance)
        })
    }

    /// Watches a place for `wake`, and notes in `wanted` that it does. What cannot be watched is passed over: what
    /// disappears in between is seen through its parent.
    ///
    /// # Errors
    /// When the kernel has no more watches for us (`fs.inotify.max_user_watches`).
    pub(super) fn watch(
        &self,
        place: &Path,
        flags: AddWatchFlags,
        wake: &Arc<Notify>,
        wanted: &mut Wanted,
    ) -> io::Result<()> {
        let mut all = self.places();
        let descriptor = match self.inotify.get().add_watch(place, flags | MASK_ADD) {
            Ok(descriptor) => descriptor,
            Err(error @ (Errno::ENOSPC | Errno::ENOMEM)) => return Err(error.into()),
            Err(_) => return Ok(()),
        };
        *wanted.entry(descriptor).or_insert(AddWatchFlags::empty()) |= flags;
        let Place { path, mask, watches } = all.entry(descriptor).or_insert_with(|| Place {
            path: PathBuf::new(),
            mask: AddWatchFlags::empty(),
            watches: Vec::new(),
        });
        *mask |= flags;
        // Where it was before it was moved.
        if path != place {
            place.clone_into(path);
        }
        match watches.iter_mut().find(|watch| Arc::ptr_eq(&watch.wake, wake)) {
            Some(watch) => watch.flags |= flags,
            None => watches.push(Watch { wake: Arc::clone(wake), flags }),
        }
        Ok(())
    }

    /// Watches for `wake` only what is wanted of the places that it was told of in `held`.
    pub(super) fn keep_only(&self, wanted: &Wanted, held: &Wanted, wake: &Arc<Notify>) {
        let mut all = self.places();
        for descriptor in held.keys() {
            let Some(Place { watches, .. }) = all.get_mut(descriptor) else { continue };
            match wanted.get(descriptor) {
                Some(flags) => watches
                    .iter_mut()
                    .filter(|watch| Arc::ptr_eq(&watch.wake, wake))
                    .for_each(|watch| watch.flags = *flags),
                None => watches.retain(|watch| !Arc::ptr_eq(&watch.wake, wake)),
            }
            if watches.is_empty() {
                all.remove(descriptor);
                // What is gone is no longer watched anyway.
                let _ = self.inotify.get().rm_watch(*descriptor);
            } else {
                self.narrow(&mut all, *descriptor);
            }
        }
    }

    /// Has the kernel tell of a place no more than somebody wants to know: others may be busy in it.
    fn narrow(&self, all: &mut BTreeMap<WatchDescriptor, Place>, descriptor: WatchDescriptor) {
        let Some(place) = all.get(&descriptor) else { return };
        let wanted = place.watches.iter().fold(AddWatchFlags::empty(), |all, watch| all | watch.flags);
        if wanted == place.mask {
            return;
        }
        // What is not there any more tells nothing.
        let Ok(found) = self.inotify.get().add_watch(&place.path, wanted) else { return };
        match all.get_mut(&found) {
            Some(place) => {
                place.mask = wanted;
                // Another place is there by now, of which more may be wanted: whoever watches it looks at it again.
                if found != descriptor {
                    place.watches.iter().for_each(|watch| watch.wake.notify_one());
                }
            }
            None => drop(self.inotify.get().rm_watch(found)),
        }
    }

    /// Waits until something happened in one of the places that are watched for `wake`.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) async fn changed(&self, wake: &Notify) -> io::Result<()> {
        loop {
            tokio::select! {
                biased;
                () = wake.notified() => return Ok(()),
                // Whoever waits reads for all.
                read = self.inotify.read(|inotify| self.dispatch(inotify)) => read?,
            }
        }
    }

    /// Reads what the kernel has to tell, and wakes those whom it concerns.
    fn dispatch(&self, inotify: &Inotify) -> io::Result<()> {
        let events = inotify.read_events()?;
        let mut all = self.places();
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                all.values().flat_map(|place| &place.watches).for_each(|watch| watch.wake.notify_one());
            } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                all.remove(&event.wd);
            } else if let Some(Place { watches, .. }) = all.get(&event.wd) {
                let concerned = watches.iter().filter(|watch| event.mask.intersects(watch.flags | ALWAYS));
                concerned.for_each(|watch| watch.wake.notify_one());
            }
        }
        Ok(())
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<WatchDescriptor, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
