//! Whether an AppArmor profile can be given to processes at all: better said when garden starts than at each process.

use std::path::Path;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("cannot use the AppArmor profile {profile:?}: the kernel has no AppArmor, or it is switched off")]
    Absent { profile: String },
    #[error("cannot use the AppArmor profile {profile:?}: it is not loaded")]
    NotLoaded { profile: String },
    #[error("{profile:?} cannot be the name of an AppArmor profile")]
    Name { profile: String },
}

/// Longest name taken.
const NAME_BYTES_MAX: usize = 255;

/// `sys`: where the machine's `/sys` is.
pub fn check(sys: &Path, profile: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_graphic();
    if profile.is_empty() || profile.len() > NAME_BYTES_MAX || !profile.bytes().all(plain) {
        return Err(Error::Name { profile: profile.into() });
    }
    let enabled = std::fs::read_to_string(sys.join("module/apparmor/parameters/enabled"));
    if !enabled.is_ok_and(|enabled| enabled.trim() == "Y") {
        return Err(Error::Absent { profile: profile.into() });
    }
    // Without securityfs nobody can tell; the kernel will, at the first process.
    let Ok(loaded) = std::fs::read_to_string(sys.join("kernel/security/apparmor/profiles")) else {
        return Ok(());
    };
    if loaded.lines().any(|line| line.rsplit_once(" (").is_some_and(|(name, _)| name == profile)) {
        Ok(())
    } else {
        Err(Error::NotLoaded { profile: profile.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_must_be_loaded_in_a_kernel_that_has_apparmor() {
        let sys = std::env::temp_dir().join(format!("garden-apparmor-{}", std::process::id()));
        let write = |file: &str, content: &str| {
            std::fs::create_dir_all(sys.join(file).parent().unwrap()).unwrap();
            std::fs::write(sys.join(file), content).unwrap();
        };
        let named = |profile: &str| profile.to_string();
        assert_eq!(check(&sys, "garden"), Err(Error::Absent { profile: named("garden") }));
        write("module/apparmor/parameters/enabled", "N\n");
        assert_eq!(check(&sys, "garden"), Err(Error::Absent { profile: named("garden") }));
        write("module/apparmor/parameters/enabled", "Y\n");
        assert_eq!(check(&sys, "garden"), Ok(()), "nobody can tell");
        write("kernel/security/apparmor/profiles", "garden-default (enforce)\n/usr/bin/man (complain)\n");
        assert_eq!(check(&sys, "garden-default"), Ok(()));
        assert_eq!(check(&sys, "garden"), Err(Error::NotLoaded { profile: named("garden") }));
        for name in ["", "a b", "a\nb", "a\0b"] {
            assert_eq!(check(&sys, name), Err(Error::Name { profile: named(name) }));
        }
        std::fs::remove_dir_all(sys).unwrap();
    }
}
