use super::*;
use crate::files::Changes;
use std::{
    os::unix::fs::symlink,
    time::{Duration, Instant},
};
use testkit::{development_ca::ProjectedVolume, scratch::Scratch};
use tokio::sync::watch;

/// How often each layout is rotated.
const ROTATIONS: u32 = 1000;
/// Within what time a generation must have been read.
const SOON: Duration = Duration::from_secs(1);

#[tokio::test]
async fn sees_a_swap_of_the_data_link() {
    let directory = Scratch::new("watcher").unwrap();
    let volume = directory.path();
    for generation in ["..1", "..2"] {
        fs::create_dir(volume.join(generation)).unwrap();
        fs::write(volume.join(generation).join("token"), generation).unwrap();
    }
    symlink("..1", volume.join("..data")).unwrap();
    symlink("..data/token", volume.join("token")).unwrap();
    let mut watcher = FileWatcher::new(&[&volume.join("token")]).unwrap();
    for target in ["..2", "..1"] {
        symlink(target, volume.join("..tmp")).unwrap();
        fs::rename(volume.join("..tmp"), volume.join("..data")).unwrap();
        while fs::read_to_string(volume.join("token")).unwrap() != target {
            watcher.changed().await.unwrap();
        }
        watcher.changed().await.unwrap();
    }
}

#[tokio::test]
async fn sees_a_file_appear_where_no_directory_was() {
    let directory = Scratch::new("watcher").unwrap();
    let file = directory.path().join("a/b/token");
    let mut watcher = FileWatcher::new(&[&file]).unwrap();
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    watcher.changed().await.unwrap();
    fs::write(&file, "x").unwrap();
    watcher.changed().await.unwrap();
    assert!(file.exists());
}

/// Somebody else passes the directory that was there before, of which less is wanted from then on.
#[tokio::test]
async fn a_replaced_directory_keeps_all_its_watches() {
    let scratch = Scratch::new("watcher").unwrap();
    let [one, two, away] = ["one", "two", "away"].map(|name| scratch.path().join(name));
    fs::create_dir_all(one.join("sub")).unwrap();
    fs::create_dir(&two).unwrap();
    let file = one.join("token");
    let mut watcher = FileWatcher::new(&[&file]).unwrap();
    let _passing = FileWatcher::new(&[&one.join("sub/token")]).unwrap();
    fs::rename(&one, &away).unwrap();
    fs::rename(&two, &one).unwrap();
    watcher.changed().await.unwrap();
    for content in ["x", "y", "z"] {
        fs::write(&file, content).unwrap();
        tokio::time::timeout(SOON, watcher.changed()).await.expect("it is seen").unwrap();
    }
}

#[test]
fn a_loop_of_links_ends() {
    let directory = Scratch::new("watcher").unwrap();
    symlink("b", directory.path().join("a")).unwrap();
    symlink("a", directory.path().join("b")).unwrap();
    let mut found = BTreeMap::new();
    walk(&directory.path().join("a"), &mut found);
    assert!(found[directory.path()].contains(ENTRIES));
}

/// Rotates chain and key, two files of one generation, and counts the generations that nobody has read in time as a
/// matching pair. `rotate` gets the directory and the generation; the files are `chain` and `key` in `place`.
async fn missed(place: &str, rotate: impl Fn(&Path, &str)) -> u32 {
    let scratch = Scratch::new("watcher").unwrap();
    let files = ["chain", "key"].map(|name| scratch.path().join(place).join(name));
    let (sender, mut seen) = watch::channel(String::new());
    let paths = files.to_vec();
    let reader = tokio::spawn(async move {
        let mut changes = Changes::new(paths, Duration::ZERO, crate::config::FileCheck::Never);
        loop {
            let [chain, key] = files.each_ref().map(|file| fs::read_to_string(file).unwrap_or_default());
            if chain == key && !chain.is_empty() {
                sender.send_replace(chain);
            }
            changes.next().await;
        }
    });
    let mut missed = 0;
    let mut slowest = Duration::ZERO;
    for generation in 0..ROTATIONS {
        let (generation, start) = (generation.to_string(), Instant::now());
        rotate(scratch.path(), &generation);
        let read = tokio::time::timeout(SOON, seen.wait_for(|seen| *seen == generation)).await;
        missed += u32::from(read.is_err());
        slowest = slowest.max(start.elapsed());
        // Every other time the reader is not at rest when the next generation comes.
        if generation.ends_with(['1', '3', '5']) {
            tokio::task::yield_now().await;
        }
    }
    reader.abort();
    println!("{place:?}: {missed} of {ROTATIONS} missed, the slowest took {slowest:?}");
    missed
}

fn write_pair(directory: &Path, generation: &str) {
    fs::create_dir_all(directory).unwrap();
    for name in ["chain", "key"] {
        fs::write(directory.join(name), generation).unwrap();
    }
}

/// A link at `link` that leads to `target` from now on, by one rename.
fn relink(link: &Path, target: &Path) {
    let fresh = link.with_extension("fresh");
    symlink(target, &fresh).unwrap();
    fs::rename(fresh, link).unwrap();
}

#[tokio::test]
async fn no_rotation_of_kubelet_is_missed() {
    let rotate = |root: &Path, generation: &str| {
        let files = [("chain", generation), ("key", generation)];
        ProjectedVolume::create(&root.join("volume"), &files).unwrap();
    };
    assert_eq!(missed("volume", rotate).await, 0);
}

#[tokio::test]
async fn no_rotation_behind_a_chain_of_links_is_missed() {
    // mount -> csi/published -> ../stage/GENERATION, of which the link in the middle is swapped.
    let rotate = |root: &Path, generation: &str| {
        write_pair(&root.join("stage").join(generation), generation);
        fs::create_dir_all(root.join("csi")).unwrap();
        relink(&root.join("csi/published"), &Path::new("../stage").join(generation));
        if fs::symlink_metadata(root.join("mount")).is_err() {
            symlink(root.join("csi/published"), root.join("mount")).unwrap();
        }
    };
    assert_eq!(missed("mount", rotate).await, 0);
}

#[tokio::test]
async fn no_rotation_of_a_moved_directory_is_missed() {
    let rotate = |root: &Path, generation: &str| {
        write_pair(&root.join("fresh"), generation);
        let _ = fs::rename(root.join("certs"), root.join("old"));
        fs::rename(root.join("fresh"), root.join("certs")).unwrap();
        let _ = fs::remove_dir_all(root.join("old"));
    };
    assert_eq!(missed("certs", rotate).await, 0);
}

#[tokio::test]
async fn no_rotation_of_a_directory_higher_up_is_missed() {
    let rotate = |root: &Path, generation: &str| {
        write_pair(&root.join("fresh/b/c"), generation);
        let _ = fs::rename(root.join("a"), root.join("old"));
        fs::rename(root.join("fresh"), root.join("a")).unwrap();
        // Kept, so that nothing but the rename tells of the change.
        fs::create_dir_all(root.join("kept")).unwrap();
        let _ = fs::rename(root.join("old"), root.join("kept").join(generation));
    };
    assert_eq!(missed("a/b/c", rotate).await, 0);
}

#[tokio::test]
async fn no_writing_in_place_is_missed() {
    assert_eq!(missed("certs", |root, generation| write_pair(&root.join("certs"), generation)).await, 0);
}

#[tokio::test]
async fn no_writing_through_another_name_is_missed() {
    let rotate = |root: &Path, generation: &str| {
        write_pair(&root.join("written"), generation);
        if fs::create_dir(root.join("certs")).is_ok() {
            for name in ["chain", "key"] {
                fs::hard_link(root.join("written").join(name), root.join("certs").join(name)).unwrap();
            }
        }
    };
    assert_eq!(missed("certs", rotate).await, 0);
}

#[tokio::test]
async fn no_file_that_is_deleted_and_made_again_is_missed() {
    let rotate = |root: &Path, generation: &str| {
        ["chain", "key"].iter().for_each(|name| drop(fs::remove_file(root.join("certs").join(name))));
        write_pair(&root.join("certs"), generation);
    };
    assert_eq!(missed("certs", rotate).await, 0);
}

#[tokio::test]
async fn no_file_in_directories_that_come_and_go_is_missed() {
    let rotate = |root: &Path, generation: &str| {
        let _ = fs::remove_dir_all(root.join("not"));
        write_pair(&root.join("not/yet/there"), generation);
    };
    assert_eq!(missed("not/yet/there", rotate).await, 0);
}
