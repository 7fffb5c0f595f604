//! The image: the same bytes each time, and nothing in it but the binary and the list of its parts.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use openssl::sha::sha256;
use serde_json::Value;
use testkit::{
    Failure, OrFail, confined,
    container::{Images, podman},
    scratch::Scratch,
    shim::cross_compiled,
    workspace,
};

/// Another one for each run: tests that run at the same time do not get in each other's way.
fn time() -> u32 {
    1_700_000_000 + std::process::id()
}

fn shipped() -> Vec<u8> {
    let path = std::env::var("SHIM_BINARY").map_or_else(|_| workspace().join("target/dist/sds-shim"), Into::into);
    fs::read(path).expect("run `make build`")
}

fn inspect(image: &str) -> Result<Value, Failure> {
    let told: Value = serde_json::from_str(&podman(&["image", "inspect", image])?).or_fail("read what podman says")?;
    Ok(told[0].clone())
}

/// Files and links below a directory, relative to it.
fn files(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).expect("a directory") {
            let entry = entry.expect("an entry");
            match entry.file_type().expect("a type").is_dir() {
                true => pending.push(entry.path()),
                false => {
                    found.insert(entry.path().strip_prefix(root).expect("below").display().to_string());
                }
            }
        }
    }
    found
}

#[test]
fn the_image_is_the_same_each_time_and_holds_the_binary_alone() -> testkit::Result {
    let (first, second) = (Images::build_for(None, time(), "")?, Images::build_for(None, time(), "")?);
    println!("{}", first.told());
    let (told, again) = (inspect(&first.binary())?, inspect(&second.binary())?);
    assert_eq!(told["RootFS"]["Layers"], again["RootFS"]["Layers"], "the layers differ");
    assert_eq!(told["Id"], again["Id"], "the images differ");
    let created = humantime::parse_rfc3339(told["Created"].as_str().unwrap_or_default()).expect("a time");
    assert_eq!(created, UNIX_EPOCH + Duration::from_secs(time().into()));

    let config = &told["Config"];
    assert_eq!(config["User"], "1337:1337");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/usr/local/bin/sds-shim"]));
    assert_eq!(config["Cmd"], serde_json::json!(["serve"]));
    assert_eq!(config["Labels"]["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(config["Labels"]["org.opencontainers.image.licenses"], "Apache-2.0");

    // Where images are kept only root of this user namespace may look.
    if !confined::holds_sys_admin() {
        eprintln!("NOT TESTED: without CAP_SYS_ADMIN the image cannot be mounted, so its files were not listed");
        return Ok(());
    }
    let root = podman(&["image", "mount", &first.binary()])?;
    let found = files(Path::new(&root));
    let path = Path::new(&root).join("usr/local/bin/sds-shim");
    let (binary, about) = (fs::read(&path), fs::metadata(&path));
    podman(&["image", "unmount", &first.binary()])?;
    let expected = ["usr/local/bin/sds-shim", "usr/share/sbom/sds-shim.cdx.json"];
    assert_eq!(found, expected.map(str::to_owned).into());
    let about = about.or_fail("look at the binary")?;
    assert_eq!((about.uid(), about.mode() & 0o7777), (0, 0o111), "its user may run it and not read it");
    assert!(binary.or_fail("read the binary")? == shipped(), "it is not the binary that is shipped");
    Ok(())
}

/// What runs programs for arm64 on another machine, where it is installed.
const EMULATOR: &str = "/usr/bin/qemu-aarch64-static";

/// The digest of the index and of what it names, as a registry gets them.
fn pushed(images: &Images, scratch: &Path) -> Result<(Value, Value), Failure> {
    let place = format!("oci:{}", scratch.display());
    podman(&["manifest", "push", "--all", "--format", "oci", &images.index(), &place])?;
    let read = |path: &Path| -> Result<Value, Failure> {
        let text = fs::read_to_string(path).or_fail(format!("read {}", path.display()))?;
        serde_json::from_str(&text).or_fail("read it as JSON")
    };
    let top = read(&scratch.join("index.json"))?;
    let digest = top["manifests"][0]["digest"].as_str().unwrap_or_default().trim_start_matches("sha256:").to_owned();
    Ok((top, read(&scratch.join("blobs/sha256").join(digest))?))
}

#[test]
fn the_index_has_both_platforms_and_is_the_same_each_time() -> testkit::Result {
    let Some((other, other_binary)) = cross_compiled() else { return Ok(()) };
    let build = || Images::build_for(None, time() / 3, "amd64 arm64");
    let scratch = Scratch::new("tests")?;
    let first = build()?;
    let (digest, index) = pushed(&first, &scratch.path().join("first"))?;
    let second = build()?;
    assert_eq!(pushed(&second, &scratch.path().join("second"))?.0, digest, "the indexes differ");
    assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    let platforms = index["manifests"].as_array().expect("manifests").iter().map(|one| &one["platform"]);
    let platforms: BTreeSet<_> =
        platforms.map(|platform| format!("{}/{}", platform["os"], platform["architecture"])).collect();
    assert_eq!(platforms, ["\"linux\"/\"amd64\"", "\"linux\"/\"arm64\""].map(str::to_owned).into());

    let list = workspace().join(format!("target/image/sds-shim-{other}.cdx.json"));
    lists_the_parts(&list, &fs::read(other_binary).or_fail("read the other binary")?)?;
    let image = second.binary_for(other);
    let (told, own) = (inspect(&image)?, inspect(&second.binary())?);
    assert_eq!(told["Architecture"], other);
    assert_eq!(told["Config"]["Labels"], own["Config"]["Labels"]);
    assert_eq!(
        (&told["Config"]["User"], &told["Config"]["Entrypoint"]),
        (&own["Config"]["User"], &own["Config"]["Entrypoint"])
    );
    if other != "arm64" || !Path::new(EMULATOR).exists() {
        eprintln!("NOT TESTED: the image for {other} was not run, as there is no {EMULATOR}");
        return Ok(());
    }
    // As root: the emulator reads the program, which the image's user may not.
    let emulator = format!("{EMULATOR}:/emulator:ro");
    let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=512:512"];
    let run = ["--runtime", "runc", "run", "--rm", "--network", "host", "--read-only", "--user", "0:0"];
    let program =
        ["--volume", &emulator, "--entrypoint", "[\"/emulator\",\"/usr/local/bin/sds-shim\"]", &image, "--version"];
    let said = podman(&[&run[..], &limits, &program].concat())?;
    assert!(said.starts_with(&format!("sds-shim {} (OpenSSL", env!("CARGO_PKG_VERSION"))), "{said}");
    Ok(())
}

#[test]
fn the_list_of_parts_is_that_of_the_binary() -> testkit::Result {
    let _images = Images::build(None)?;
    lists_the_parts(&workspace().join("target/image/sds-shim.cdx.json"), &shipped())
}

fn lists_the_parts(list: &Path, binary: &[u8]) -> testkit::Result {
    let text = fs::read_to_string(list).or_fail(format!("read {}", list.display()))?;
    let list: Value = serde_json::from_str(&text).or_fail("read it as JSON")?;
    assert_eq!((&list["bomFormat"], &list["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    let digest: String = sha256(binary).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(list["metadata"]["component"]["hashes"][0]["content"], digest.as_str());

    let parts = list["components"].as_array().expect("it has parts");
    let version = |kind: &str| {
        let mut names = parts.iter().filter_map(|part| part["purl"].as_str());
        names.find_map(|name| name.strip_prefix(kind)).unwrap_or_else(|| panic!("{kind} is not listed"))
    };
    // What the binary says of itself.
    let openssl = format!("OpenSSL {} ", version("pkg:generic/openssl@"));
    assert!(binary.windows(openssl.len()).any(|bytes| bytes == openssl.as_bytes()), "{openssl}is not in the binary");
    for name in ["generic/rust@", "cargo/tokio@", "cargo/openssl-sys@", "cargo/locked@"] {
        version(&format!("pkg:{name}"));
    }
    assert!(parts.iter().any(|part| part["name"] == "glibc"));
    for foreign in parts.iter().filter(|part| part["purl"].as_str().is_some_and(|purl| purl.starts_with("pkg:cargo/")))
    {
        let ours = ["locked", "sds-shim-proto"].map(Value::from).contains(&foreign["name"]);
        assert!(ours || foreign["hashes"][0]["content"].is_string(), "{foreign}");
        assert!(foreign["licenses"][0]["expression"].is_string(), "{foreign}");
    }
    println!("{} parts", parts.len());
    Ok(())
}

/// Where it was built is nobody's business, and would make other bytes of the same source.
#[test]
fn the_binary_does_not_know_where_it_was_built() {
    let binary = shipped();
    let home = std::env::var("HOME").unwrap_or_else(|_| "/root".to_owned());
    for place in [workspace().display().to_string(), format!("{home}/"), "registry/src".to_owned()] {
        let found = binary.windows(place.len()).position(|bytes| bytes == place.as_bytes());
        let around = found.map(|at| String::from_utf8_lossy(&binary[at..(at + 100).min(binary.len())]).into_owned());
        assert_eq!(around, None);
    }
}
