//! Random stacks of layers, mounted, against a naive model of what they mean. Needs root.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use common::{Entry, Tar, image};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rootfs::quota::Backend;
use rootfs::{BaseIds, Config, DiskLimit, Store};
use serde_json::json;
use tar::EntryType;

const STACKS: u64 = 100;
const LAYERS_MAX: usize = 5;
const ENTRIES_MAX: usize = 12;
const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    /// Its mode, where the topmost layer that has it says so.
    Directory(Option<u32>),
    /// No two files have the same content but those that are one.
    File(String, u32),
    Link(String),
}

/// What a stack means: each layer's entries in their order, whiteouts for what is below the layer alone.
#[derive(Default)]
struct Model {
    tree: BTreeMap<String, Node>,
    /// Of the layer being added.
    own: BTreeSet<String>,
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn is_below(path: &str, directory: &str) -> bool {
    directory.is_empty() || path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

impl Model {
    fn is_own_directory(&self, path: &str) -> bool {
        self.own.contains(path) && matches!(self.tree.get(path), Some(Node::Directory(_)))
    }

    /// No file or link of the same layer is on the way: that would be refused.
    fn is_reachable(&self, path: &str) -> bool {
        parents(path).all(|parent| !self.own.contains(parent) || self.is_own_directory(parent))
    }

    fn make_parents(&mut self, path: &str) {
        for parent in parents(path).map(String::from).collect::<Vec<_>>() {
            self.make_directory(&parent, None);
        }
    }

    fn make_directory(&mut self, path: &str, mode: Option<u32>) {
        let known = self.is_own_directory(path);
        match (self.tree.get(path), mode) {
            (Some(Node::Directory(_)), None) if known => return,
            (Some(Node::Directory(_)), _) => {}
            _ => self.remove(path),
        }
        self.tree.insert(path.into(), Node::Directory(mode));
        self.own.insert(path.into());
    }

    fn remove(&mut self, path: &str) {
        self.tree.retain(|known, _| known != path && !is_below(known, path));
        self.own.retain(|known| known != path && !is_below(known, path));
    }

    fn put(&mut self, path: &str, node: Node) {
        self.make_parents(path);
        self.remove(path);
        self.tree.insert(path.into(), node);
        self.own.insert(path.into());
    }

    fn whiteout(&mut self, path: &str) {
        self.make_parents(path);
        let own = &self.own;
        self.tree.retain(|known, _| own.contains(known) || known != path && !is_below(known, path));
    }

    fn clear(&mut self, directory: &str) {
        if !directory.is_empty() {
            self.make_parents(directory);
            self.make_directory(directory, None);
        }
        let own = &self.own;
        self.tree.retain(|known, _| own.contains(known) || !is_below(known, directory));
    }
}

fn path(chance: &mut StdRng) -> String {
    let depth = chance.random_range(1..=3);
    (0..depth).map(|_| NAMES[chance.random_range(0..NAMES.len())]).collect::<Vec<_>>().join("/")
}

fn beside(path: &str, name: &str) -> String {
    path.rsplit_once('/').map_or(name.to_string(), |(directory, _)| format!("{directory}/{name}"))
}

/// One layer more, into the model and as a tar.
fn layer(model: &mut Model, chance: &mut StdRng, number: usize) -> Vec<u8> {
    model.own.clear();
    let mut tar = Tar::default();
    for entry in 0..chance.random_range(1..=ENTRIES_MAX) {
        let path = path(chance);
        if !model.is_reachable(&path) {
            continue;
        }
        let mode = [0o755, 0o700, 0o1777][chance.random_range(0..3)];
        let file = model.own.iter().find(|own| matches!(model.tree.get(*own), Some(Node::File(..)))).cloned();
        match (chance.random_range(0..12), file) {
            (0..=2, _) => {
                tar = tar.directory(&path, mode);
                model.make_parents(&path);
                model.make_directory(&path, Some(mode));
            }
            (3, _) => {
                tar = tar.symlink(&path, "/somewhere/else");
                model.put(&path, Node::Link("/somewhere/else".into()));
            }
            (4, Some(target)) if target != path && !is_below(&target, &path) => {
                tar = tar.hard_link(&path, &target);
                let node = model.tree[&target].clone();
                model.put(&path, node);
            }
            (5..=7, _) => {
                let name = path.rsplit('/').next().unwrap();
                tar = tar.file(&beside(&path, &format!(".wh.{name}")), "");
                model.whiteout(&path);
            }
            (8, _) => {
                let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
                tar = tar.file(&beside(&path, ".wh..wh..opq"), "");
                model.clear(directory);
            }
            _ => {
                let content = format!("layer {number} entry {entry}");
                tar = tar.add(Entry { mode, ..Entry::file(&path, content.as_bytes()) });
                model.put(&path, Node::File(content, mode));
            }
        }
    }
    tar.add(Entry { mode: 0o755, ..Entry::link(".", EntryType::Directory, "") }).bytes()
}

/// What is there, with the number of each file.
fn look(root: &Path, below: &str, seen: &mut BTreeMap<String, (Node, u64)>) {
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        let metadata = fs::symlink_metadata(root.join(&path));
        let metadata = metadata.unwrap_or_else(|error| panic!("{path} is listed and not there: {error}"));
        assert!(!metadata.file_type().is_char_device(), "a whiteout shows at {path}");
        let mode = metadata.mode() & 0o7777;
        let node = if metadata.is_dir() {
            Node::Directory(Some(mode))
        } else if metadata.is_symlink() {
            Node::Link(fs::read_link(root.join(&path)).unwrap().to_str().unwrap().into())
        } else {
            Node::File(fs::read_to_string(root.join(&path)).unwrap(), mode)
        };
        let is_directory = metadata.is_dir();
        seen.insert(path.clone(), (node, metadata.ino()));
        if is_directory {
            look(root, &path, seen);
        }
    }
}

fn compare(model: &Model, seen: BTreeMap<String, (Node, u64)>, stack: u64) {
    let mut numbers: BTreeMap<String, u64> = BTreeMap::new();
    let mut shown = BTreeMap::new();
    for (path, (node, number)) in seen {
        if let Node::File(content, _) = &node {
            let first = *numbers.entry(content.clone()).or_insert(number);
            assert_eq!(first, number, "stack {stack}: {path} is the same file as another no more");
        }
        let unsaid = matches!(model.tree.get(&path), Some(Node::Directory(None)));
        let is_directory = matches!(node, Node::Directory(_));
        shown.insert(path, if unsaid && is_directory { Node::Directory(None) } else { node });
    }
    assert_eq!(shown, model.tree, "stack {stack}");
    let files: BTreeSet<u64> = numbers.values().copied().collect();
    assert_eq!(files.len(), numbers.len(), "stack {stack}: two files have one number");
}

#[tokio::test]
async fn a_stack_of_layers_shows_what_its_entries_mean_whatever_they_are() {
    if !common::is_root() {
        return println!(
            "SKIPPED a_stack_of_layers_shows_what_its_entries_mean_whatever_they_are: needs root"
        );
    }
    let scratch = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.quota.backend = Backend::Plain;
    let store = Store::open(&scratch.path().join("store"), config).unwrap();
    for stack in 0..STACKS {
        let mut chance = StdRng::seed_from_u64(stack);
        let mut model = Model::default();
        let layers: Vec<Vec<u8>> =
            (0..chance.random_range(1..=LAYERS_MAX)).map(|n| layer(&mut model, &mut chance, n)).collect();
        let path = scratch.path().join("layout");
        image(&layers, json!({})).write_layout(&path, "v1");
        let uri = format!("oci://{}:v1", path.display());
        let pulled = store.pull(&uri.parse().unwrap(), None, &|_| {}).await;
        let pulled = pulled.unwrap_or_else(|error| panic!("stack {stack}: {error}"));
        let handle = format!("stack-{stack}");
        let mount = store.mount(&handle, &pulled, None, BaseIds::default(), DiskLimit::default()).unwrap();
        let root = format!("/proc/self/fd/{}", mount.fd.as_raw_fd());
        let mut seen = BTreeMap::new();
        look(Path::new(&root), "", &mut seen);
        compare(&model, seen, stack);
        drop(mount);
        store.unmount(&handle).unwrap();
        fs::remove_dir_all(path).unwrap();
    }
}
