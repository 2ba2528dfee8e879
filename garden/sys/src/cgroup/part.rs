//! A group inside of another one's, by which some of its processes are told from the rest, to be ended together. It limits
//! nothing: what they use is the whole group's.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::{Cgroup, Hierarchies, Result, kill_all, make_directory, remove_tree};

#[derive(Debug, Clone)]
pub struct Part {
    whole: Cgroup,
    /// Which of the whole group's directories holds it: one tells its processes, in the others they are the whole's.
    index: usize,
    directory: PathBuf,
}

impl Part {
    pub(super) fn of(whole: &Cgroup, name: &str) -> Part {
        let index = match &whole.hierarchies {
            // The cheapest to have many groups of.
            Hierarchies::V1(v1) => v1.position("pids").unwrap_or(0),
            Hierarchies::V2(_) => 0,
        };
        Part { directory: whole.directories[index].join(name), index, whole: whole.clone() }
    }

    /// Makes it; the whole must be there. Safe to call when it exists.
    pub fn create(&self) -> Result<()> {
        make_directory(&self.directory)
    }

    /// As [`Cgroup::join_files`].
    pub fn join_files(&self) -> Result<Vec<OwnedFd>> {
        let mut joined = self.whole.clone();
        joined.directories[self.index].clone_from(&self.directory);
        joined.join_files()
    }

    /// As [`Cgroup::remove`].
    pub fn remove(&self) -> Result<()> {
        kill_all(&self.directory)?;
        remove_tree(&self.directory)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_part_is_below_its_whole_in_one_hierarchy_only() {
        let root = std::env::temp_dir().join(format!("cgroup-part-{}", std::process::id()));
        for name in ["memory", "pids"] {
            for directory in [name.to_string(), format!("{name}/diego/whole")] {
                fs::create_dir_all(root.join(&directory)).unwrap();
                fs::write(root.join(directory).join("tasks"), "").unwrap();
            }
        }
        let part = Hierarchies::probe(&root).unwrap().cgroup("diego", "whole").part("some");
        part.create().unwrap();
        part.create().unwrap();
        assert!(
            root.join("pids/diego/whole/some").is_dir() && !root.join("memory/diego/whole/some").exists()
        );
        fs::write(root.join("pids/diego/whole/some/tasks"), "").unwrap();
        assert_eq!(part.join_files().unwrap().len(), 2);
        fs::remove_file(root.join("pids/diego/whole/some/tasks")).unwrap();
        part.remove().unwrap();
        part.remove().unwrap();
        assert!(!root.join("pids/diego/whole/some").exists() && root.join("pids/diego/whole").exists());
        fs::remove_dir_all(root).unwrap();
    }
}
