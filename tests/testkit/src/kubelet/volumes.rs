//! The volumes of a pod, as kubelet lays them out.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use development_ca::{ProjectedFile, ProjectedVolume};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{
    Cluster, TokenWish,
    facts::Facts,
    manifest::{ConfigMap, DownwardApi, EmptyDir, Item, Medium, Pod, Secret, Source, TokenSource, Volume},
    quantity,
};
use crate::{Failure, OrFail};

/// Kubernetes' own default.
const MODE: u32 = 0o644;
const TOKEN_LIFE: u64 = 3600;

/// All volumes of one pod; unmounted when this is dropped.
pub(super) struct Volumes {
    directory: PathBuf,
    mounted: Vec<PathBuf>,
    projected: BTreeMap<String, ProjectedVolume>,
}

impl Drop for Volumes {
    fn drop(&mut self) {
        for path in &self.mounted {
            // Whatever still has a file open there keeps its own view of it.
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

impl Volumes {
    /// Makes those of the pod below `directory`.
    pub(super) fn create(directory: &Path, facts: &Facts<'_>, cluster: &dyn Cluster) -> Result<Self, Failure> {
        let mut volumes = Self { directory: directory.to_owned(), mounted: Vec::new(), projected: BTreeMap::new() };
        for volume in &facts.pod.spec.volumes {
            let made = volumes.make(volume, facts.pod);
            made.map_err(|failure| failure.context(format!("volume {}", volume.name)))?;
        }
        volumes.refresh(facts, cluster)?;
        Ok(volumes)
    }

    /// Where it is, and whether containers may only read it.
    pub(super) fn path(&self, name: &str) -> Result<(PathBuf, bool), Failure> {
        let path = self.directory.join(name);
        match path.is_dir() {
            true => Ok((path, self.projected.contains_key(name))),
            false => Err(Failure::new(format!("the pod has no volume {name:?}"))),
        }
    }

    /// Writes all files anew, with new tokens, as kubelet does it from time to time.
    pub(super) fn refresh(&self, facts: &Facts<'_>, cluster: &dyn Cluster) -> crate::Result {
        for volume in &facts.pod.spec.volumes {
            let Some(projected) = self.projected.get(&volume.name) else { continue };
            let files = Projection { facts, cluster, files: Vec::new() }.files(volume);
            let written = files.and_then(|files| projected.replace_files(&files).or_fail("write it"));
            written.map_err(|failure| failure.context(format!("volume {}", volume.name)))?;
        }
        Ok(())
    }

    fn make(&mut self, volume: &Volume, pod: &Pod) -> crate::Result {
        let path = self.directory.join(&volume.name);
        if path.exists() {
            return Err(Failure::new("it is there twice"));
        }
        fs::create_dir_all(&path).or_fail(format!("create {}", path.display()))?;
        match volume {
            Volume {
                empty_dir: Some(empty),
                projected: None,
                config_map: None,
                secret: None,
                downward_api: None,
                ..
            } => {
                self.empty(&path, empty)?;
                // Anybody may write there, as in Kubernetes; with fsGroup, what is made there is of the group.
                let mode = if pod.spec.security_context.fs_group.is_some() { 0o2777 } else { 0o777 };
                chown(&path, None, pod.spec.security_context.fs_group).or_fail("give it to fsGroup")?;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).or_fail("open it")
            }
            Volume { empty_dir: None, projected, config_map, secret, downward_api, .. }
                if [projected.is_some(), config_map.is_some(), secret.is_some(), downward_api.is_some()]
                    .iter()
                    .filter(|is| **is)
                    .count()
                    == 1 =>
            {
                // No token and no secret touches a disk.
                self.memory(&path, "mode=0755")?;
                let made = ProjectedVolume::create(&path, &[]).or_fail(format!("create {}", path.display()))?;
                self.projected.insert(volume.name.clone(), made);
                Ok(())
            }
            _ => Err(Failure::new("it must have exactly one source")),
        }
    }

    fn empty(&mut self, path: &Path, empty: &EmptyDir) -> crate::Result {
        match (&empty.medium, &empty.size_limit) {
            (Some(Medium::Memory), Some(limit)) => self.memory(path, &format!("size={}", quantity::bytes(limit)?)),
            (Some(Medium::Memory), None) => self.memory(path, ""),
            (_, None) => Ok(()),
            (_, Some(_)) => Err(Failure::new("a sizeLimit is held here only for the medium Memory")),
        }
    }

    fn memory(&mut self, path: &Path, options: &str) -> crate::Result {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let mounted = mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options));
        mounted.or_fail(format!("mount a tmpfs at {}", path.display()))?;
        self.mounted.push(path.to_owned());
        Ok(())
    }
}

/// One volume's files under construction.
struct Projection<'a> {
    facts: &'a Facts<'a>,
    cluster: &'a dyn Cluster,
    files: Vec<ProjectedFile>,
}

impl Projection<'_> {
    fn files(mut self, volume: &Volume) -> Result<Vec<ProjectedFile>, Failure> {
        if let Some(map) = &volume.config_map {
            self.config_map(map, map.default_mode.unwrap_or(MODE))?;
        }
        if let Some(secret) = &volume.secret {
            self.secret(secret)?;
        }
        if let Some(downward) = &volume.downward_api {
            self.downward(downward, downward.default_mode.unwrap_or(MODE))?;
        }
        if let Some(projected) = &volume.projected {
            let mode = projected.default_mode.unwrap_or(MODE);
            for source in &projected.sources {
                match source {
                    Source::ServiceAccountToken(token) => self.token(token, mode)?,
                    Source::ConfigMap(map) => self.config_map(map, mode)?,
                    Source::DownwardApi(downward) => self.downward(downward, mode)?,
                }
            }
        }
        Ok(self.files)
    }

    /// Readable for its user alone where the pod tells one, and for fsGroup.
    fn token(&mut self, token: &TokenSource, mode: u32) -> crate::Result {
        let pod = self.facts.pod;
        let (user, group) = (common_user(pod), pod.spec.security_context.fs_group);
        let content = self.cluster.token(&TokenWish {
            namespace: &pod.metadata.namespace,
            service_account: self.facts.service_account(),
            pod: &pod.metadata.name,
            uid: &self.facts.uid,
            audience: token.audience.as_deref(),
            expiration_seconds: token.expiration_seconds.unwrap_or(TOKEN_LIFE),
        })?;
        let mode = if user.is_some() || group.is_some() { 0o600 } else { mode };
        self.push(&token.path, content, mode, user);
        Ok(())
    }

    fn config_map(&mut self, map: &ConfigMap, mode: u32) -> crate::Result {
        let Some(mut data) = self.cluster.config_map(&self.facts.pod.metadata.namespace, &map.name)? else {
            return if map.optional {
                Ok(())
            } else {
                Err(Failure::new(format!("there is no ConfigMap {}", map.name)))
            };
        };
        if map.items.is_empty() {
            data.into_iter().for_each(|(name, content)| self.push(&name, content, mode, None));
            return Ok(());
        }
        for Item { key, path, mode: own } in &map.items {
            let missing = || Failure::new(format!("the ConfigMap {} has no key {key}", map.name));
            let content = data.remove(key).ok_or_else(missing)?;
            self.push(path, content, own.unwrap_or(mode), None);
        }
        Ok(())
    }

    fn secret(&mut self, secret: &Secret) -> crate::Result {
        let (namespace, name) = (&self.facts.pod.metadata.namespace, &secret.secret_name);
        let data = self.cluster.secret(namespace, name)?;
        let data = data.ok_or_else(|| Failure::new(format!("there is no Secret {name}")))?;
        let mode = secret.default_mode.unwrap_or(MODE);
        data.into_iter().for_each(|(name, content)| self.push(&name, content, mode, None));
        Ok(())
    }

    fn downward(&mut self, downward: &DownwardApi, mode: u32) -> crate::Result {
        for item in &downward.items {
            let content = self.facts.field(&item.field_ref)?;
            self.push(&item.path, content, mode, None);
        }
        Ok(())
    }

    fn push(&mut self, name: &str, content: String, mode: u32, uid: Option<u32>) {
        let gid = self.facts.pod.spec.security_context.fs_group;
        let mode = if gid.is_some() { mode | 0o440 } else { mode };
        self.files.push(ProjectedFile { name: name.to_owned(), content, mode, uid, gid });
    }
}

/// The user of all containers, if they have one in common.
fn common_user(pod: &Pod) -> Option<u32> {
    let containers = pod.spec.init_containers.iter().chain(&pod.spec.containers);
    let mut users = containers.map(|one| one.security_context.run_as_user.or(pod.spec.security_context.run_as_user));
    let first = users.next().flatten()?;
    users.all(|user| user == Some(first)).then_some(first)
}
