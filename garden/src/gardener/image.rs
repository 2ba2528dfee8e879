//! A container's root as the gardener deals with it: out of the store, or made by a plugin where there is one.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::StreamExt;
use garden_client::{ContainerSpec, DiskLimits, DiskStat, Error, ImageRef, Result};
use rootfs::image;
use rootfs::registry::Credentials;
use rootfs::store::{BaseIds, DiskLimit, DiskScope, Image};
use tokio_util::sync::CancellationToken;

use super::entry::Entry;
use super::{Gardener, blocking, chain};
use crate::containerizer::Blank;
use crate::plugins::image::{self as plugin, ImagePlugin, Made};
use crate::plugins::root;

/// A directory of the host that is a root as it is, whoever makes images.
const RAW: &str = "raw://";
/// Programs started at once to be asked what containers use.
const STATS_AT_ONCE: usize = 8;

/// What it takes too long to do, in an error.
pub(super) const MOUNT: &str = "mount the root";

/// What the root will be made of.
pub(super) enum Wanted {
    Stored(Image),
    Plugin(ImageRef),
    Raw(PathBuf),
}

pub(super) struct Root {
    pub fd: OwnedFd,
    /// Of the image.
    pub env: Vec<String>,
}

fn failed(error: impl std::error::Error) -> Error {
    Error::Other(chain(&error))
}

impl Gardener {
    /// `None`: the store makes all roots.
    fn image_plugin(&self, privileged: bool) -> Option<Result<&ImagePlugin>> {
        let config = &self.0.config;
        let (plugin, missing) = match privileged {
            true => (&config.privileged_image_plugin, "no privileged_image_plugin provided"),
            false => (&config.image_plugin, "no image_plugin provided"),
        };
        let any = config.image_plugin.is_some() || config.privileged_image_plugin.is_some();
        any.then(|| plugin.as_ref().ok_or_else(|| Error::Other(missing.into())))
    }

    /// Brings here what a root needs that nobody else may be using; nothing that must be taken away again.
    pub(super) async fn pull(&self, spec: &ContainerSpec) -> Result<Wanted> {
        // The root's path is the older way to name an image.
        let named = [&spec.image.uri, &spec.rootfs_path].into_iter().find(|uri| !uri.is_empty());
        let uri = named.unwrap_or(&self.0.config.default_rootfs);
        let image = ImageRef { uri: uri.clone(), ..spec.image.clone() };
        if let Some(path) = uri.strip_prefix(RAW) {
            return Ok(Wanted::Raw(path.into()));
        }
        match self.image_plugin(spec.privileged) {
            Some(plugin) => plugin.map(|_| Wanted::Plugin(image)),
            None => self.pull_stored(&image).await.map(Wanted::Stored),
        }
    }

    /// Into the store, whatever plugins there are.
    pub(super) async fn pull_stored(&self, image: &ImageRef) -> Result<Image> {
        let ImageRef { uri, username, password } = image;
        let uri = if uri.is_empty() { &self.0.config.default_rootfs } else { uri };
        if uri.is_empty() {
            return Err(Error::Other("no image is named, and there is no default".into()));
        }
        let image = image::ImageRef::from_str(uri).map_err(failed)?;
        let credentials = Credentials::given(username, password);
        self.0.store.pull(&image, credentials, &|_| {}).await.map_err(failed)
    }

    pub(super) async fn mount(
        &self,
        entry: &Arc<Entry>,
        spec: &ContainerSpec,
        blank: &Arc<Blank>,
        wanted: Wanted,
    ) -> Result<Root> {
        let made = match wanted {
            Wanted::Stored(image) => return self.mount_stored(entry, spec, blank, image).await,
            Wanted::Raw(root) => Made { root, ..Made::default() },
            Wanted::Plugin(image) => self.ask_plugin(entry, spec, image).await?,
        };
        let env = made.env.clone();
        let fd = self.step(entry, MOUNT, blocking(move || root::assemble(&made))).await?;
        Ok(Root { fd, env })
    }

    async fn mount_stored(
        &self,
        entry: &Entry,
        spec: &ContainerSpec,
        blank: &Arc<Blank>,
        image: Image,
    ) -> Result<Root> {
        let disk = spec.limits.disk;
        let scope = if disk.scope == 0 { DiskScope::Total } else { DiskScope::Exclusive };
        let limit = DiskLimit { bytes: disk.byte_hard, inodes: disk.inode_hard, scope };
        let root = blank.ids().map_or(0, |ids| ids.root_id());
        let base = BaseIds { uid: root, gid: root };
        let (gardener, handle, blank) = (self.clone(), spec.handle.clone(), blank.clone());
        let mount = move || {
            let mounted = gardener.0.store.mount(&handle, &image, blank.user_namespace(), base, limit)?;
            Ok::<_, rootfs::store::Error>(Root { fd: mounted.fd, env: image.config.env.clone() })
        };
        self.step(entry, MOUNT, blocking(mount)).await
    }

    /// In the record before it is asked, so that it is told to delete whatever becomes of this.
    async fn ask_plugin(&self, entry: &Arc<Entry>, spec: &ContainerSpec, image: ImageRef) -> Result<Made> {
        self.change(entry.clone(), |record| record.imaged = true).await?;
        let directory = self.0.depot.directory(&entry.handle).join("image");
        let never = CancellationToken::new();
        self.make_by_plugin(&entry.handle, spec.privileged, image, spec.limits.disk, directory, &never).await
    }

    /// `directory`: for what is written for the plugin to read. What becomes of the root is for the caller to have recorded.
    pub(super) async fn make_by_plugin(
        &self,
        name: &str,
        privileged: bool,
        mut image: ImageRef,
        disk: DiskLimits,
        directory: PathBuf,
        cancelled: &CancellationToken,
    ) -> Result<Made> {
        let Some(plugin) = self.image_plugin(privileged) else { return Ok(Made::default()) };
        let plugin = plugin?;
        if image.uri.starts_with("preloaded+layer:") {
            let image::ImageRef::PreloadedWithLayer { base, layer } =
                image::ImageRef::from_str(&image.uri).map_err(failed)?
            else {
                return Err(Error::Other(format!("'{}' names no image with a layer over it", image.uri)));
            };
            image.uri = blocking(move || plugin::write_layout(&directory, &base, &layer)).await?;
        }
        plugin.create(name, &image, disk, cancelled).await.map_err(failed)
    }

    /// Safe to call again.
    pub(super) async fn delete_by_plugin(&self, name: &str, privileged: bool) -> Result<()> {
        let plugin = self.image_plugin(privileged).ok_or_else(|| {
            Error::Other("its root was made by a plugin, and this garden has none to take it away".into())
        })??;
        plugin.delete(name).await.map_err(failed)
    }

    /// Safe to call again.
    pub(super) async fn unmount(&self, entry: &Arc<Entry>) -> Result<()> {
        let (imaged, privileged) = entry.with_record(|record| (record.imaged, record.spec.privileged));
        if imaged {
            self.delete_by_plugin(&entry.handle, privileged).await?;
            return self.change(entry.clone(), |record| record.imaged = false).await;
        }
        let (gardener, handle) = (self.clone(), entry.handle.clone());
        let unmount = blocking(move || gardener.0.store.unmount(&handle));
        self.step(entry, "unmount the root", unmount).await
    }

    /// What those containers use whose roots a plugin has made.
    pub(super) async fn plugin_disks(&self, handles: &[String]) -> BTreeMap<String, Result<DiskStat>> {
        let entries = handles.iter().filter_map(|handle| self.entry(handle).ok());
        let made = entries.filter_map(|entry| {
            let privileged = entry.with_record(|record| record.imaged.then_some(record.spec.privileged))?;
            Some((entry.handle.clone(), privileged))
        });
        let asking = made.collect::<Vec<_>>().into_iter().map(|(handle, privileged)| async move {
            let disk = match self.image_plugin(privileged) {
                Some(Ok(plugin)) => plugin.stats(&handle).await.map_err(failed),
                Some(Err(error)) => Err(error),
                None => Err(Error::Other("requested image plugin not available".into())),
            };
            (handle, disk)
        });
        futures_util::stream::iter(asking).buffer_unordered(STATS_AT_ONCE).collect().await
    }

    /// Bytes, as the plugin counts them.
    pub(super) async fn plugin_capacity(&self) -> Option<Result<u64>> {
        let plugin = self.0.config.image_plugin.as_ref()?;
        Some(plugin.capacity().await.map_err(failed))
    }
}
