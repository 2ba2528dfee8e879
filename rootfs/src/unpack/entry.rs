//! What the name of a tar entry means in a layer: a place below the root, or a whiteout of one. Pure.

/// Bytes of one whole path; the kernel's own limit for a path given to it.
pub const PATH_BYTES_MAX: usize = 4095;
const COMPONENT_BYTES_MAX: usize = 255;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What an old union filesystem kept for itself and old archives still hold.
const RESERVED: &[u8] = b".wh..wh.";

/// A normal path below a layer's root: components joined by one `/`, none of them `.` or `..`; empty for the root.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Place(Vec<u8>);

impl Place {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory it is in, and its name there; `None` for the root.
    pub fn split(&self) -> Option<(Place, &[u8])> {
        if self.is_root() {
            return None;
        }
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(slash) => Some((Place(self.0[..slash].to_vec()), &self.0[slash + 1..])),
            None => Some((Place::default(), &self.0)),
        }
    }

    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|component| !component.is_empty())
    }

    pub fn join(&self, component: &[u8]) -> Place {
        let mut bytes = self.0.clone();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(component);
        Place(bytes)
    }

    /// Why `raw` names no place below a root, or the place it names.
    pub fn parse(raw: &[u8]) -> Result<Place, &'static str> {
        if raw.first() == Some(&b'/') {
            return Err("its path is absolute");
        }
        if raw.is_empty() {
            return Err("its path is empty");
        }
        if raw.len() > PATH_BYTES_MAX {
            return Err("its path is too long");
        }
        if raw.contains(&0) {
            return Err("its path holds a NUL");
        }
        let mut place = Place::default();
        for component in raw.split(|b| *b == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err("its path leads out with '..'"),
                _ if component.len() > COMPONENT_BYTES_MAX => return Err("a name in its path is too long"),
                _ => place = place.join(component),
            }
        }
        Ok(place)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_root() { f.write_str("/") } else { shown(&self.0).fmt(f) }
    }
}

/// A name from an archive as an error shows it: one line, not endless.
pub fn shown(raw: &[u8]) -> String {
    const CHARACTERS_MAX: usize = 256;
    let text = String::from_utf8_lossy(raw);
    text.chars().take(CHARACTERS_MAX).flat_map(|c| c.escape_debug()).collect()
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    Content(Place),
    /// What lower layers have at this place is gone.
    Whiteout(Place),
    /// What lower layers have in this directory is gone.
    Opaque(Place),
    Nothing,
}

impl Meaning {
    pub fn of(raw: &[u8]) -> Result<Meaning, &'static str> {
        let place = Place::parse(raw)?;
        let Some((parent, name)) = place.split() else { return Ok(Meaning::Content(place)) };
        match name {
            OPAQUE => Ok(Meaning::Opaque(parent)),
            _ if name.starts_with(RESERVED) => Ok(Meaning::Nothing),
            _ => match name.strip_prefix(WHITEOUT) {
                Some(b"" | b"." | b"..") => Err("it is a whiteout of nothing"),
                Some(removed) => Ok(Meaning::Whiteout(parent.join(removed))),
                None => Ok(Meaning::Content(place)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning(raw: &str) -> String {
        match Meaning::of(raw.as_bytes()) {
            Ok(Meaning::Content(place)) => format!("{place}"),
            Ok(Meaning::Whiteout(place)) => format!("- {place}"),
            Ok(Meaning::Opaque(place)) => format!("opaque {place}"),
            Ok(Meaning::Nothing) => "nothing".into(),
            Err(reason) => reason.into(),
        }
    }

    #[test]
    fn a_name_means_one_thing() {
        let long = "x/".repeat(2100);
        let wide = "y".repeat(256);
        for (raw, expected) in [
            ("./", "/"),
            (".", "/"),
            ("./a//b/./c/", "a/b/c"),
            ("a", "a"),
            ("/a", "its path is absolute"),
            ("", "its path is empty"),
            ("../a", "its path leads out with '..'"),
            ("a/../b", "its path leads out with '..'"),
            ("a/..", "its path leads out with '..'"),
            ("a\0b", "its path holds a NUL"),
            (&long, "its path is too long"),
            (&wide, "a name in its path is too long"),
            ("a/.wh.b", "- a/b"),
            (".wh.b", "- b"),
            ("a/.wh..wh..opq", "opaque a"),
            (".wh..wh..opq", "opaque /"),
            (".wh..wh.plnk", "nothing"),
            ("a/.wh.", "it is a whiteout of nothing"),
            ("a/.wh..", "it is a whiteout of nothing"),
            ("a/.wh...", "it is a whiteout of nothing"),
            ("a/.wh.b/c", "a/.wh.b/c"),
        ] {
            assert_eq!(meaning(raw), expected, "{raw:?}");
        }
    }

    #[test]
    fn a_place_splits_into_directory_and_name() {
        let place = Place::parse(b"a/b/c").unwrap();
        assert_eq!(place.split(), Some((Place::parse(b"a/b").unwrap(), &b"c"[..])));
        assert_eq!(Place::parse(b"a").unwrap().split(), Some((Place::default(), &b"a"[..])));
        assert_eq!(Place::default().split(), None);
    }
}
