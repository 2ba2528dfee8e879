//! Splits a command line into words the way a shell quotes them. It expands nothing: a line that needs a real shell
//! (variables, globs, pipes) is said to need one.

/// A command line, split.
#[derive(Debug, PartialEq)]
pub struct Words {
    pub words: Vec<String>,
    /// Something outside quotes (or `$` and backquotes inside double ones) means more to a shell than itself.
    pub needs_shell: bool,
}

/// `None` when a quote is left open.
pub fn split(line: &str) -> Option<Words> {
    let mut words = Vec::new();
    let mut needs_shell = false;
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => quoted(&mut characters, word.get_or_insert_default())?,
            '"' => {
                needs_shell |= double_quoted(&mut characters, word.get_or_insert_default())?;
            }
            '\\' => word.get_or_insert_default().push(characters.next()?),
            _ => {
                needs_shell |= "|&;<>()$`*?[]{}~#!\n".contains(c);
                word.get_or_insert_default().push(c);
            }
        }
    }
    words.extend(word);
    Some(Words { words, needs_shell })
}

fn quoted(characters: &mut std::str::Chars, word: &mut String) -> Option<()> {
    loop {
        match characters.next()? {
            '\'' => return Some(()),
            c => word.push(c),
        }
    }
}

fn double_quoted(characters: &mut std::str::Chars, word: &mut String) -> Option<bool> {
    let mut needs_shell = false;
    loop {
        match characters.next()? {
            '"' => return Some(needs_shell),
            '\\' => match characters.next()? {
                c @ ('"' | '\\' | '$' | '`') => word.push(c),
                '\n' => {}
                c => word.extend(['\\', c]),
            },
            c => {
                needs_shell |= matches!(c, '$' | '`');
                word.push(c);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_group_words() {
        let table: [(&str, &[&str], bool); 8] = [
            ("", &[], false),
            ("scp -t  /tmp/x", &["scp", "-t", "/tmp/x"], false),
            ("a 'b c' \"d e\"f", &["a", "b c", "d ef"], false),
            (r"a\ b '\n' ", &["a b", r"\n"], false),
            ("''", &[""], false),
            ("\"$HOME\"", &["$HOME"], true),
            ("'$HOME'", &["$HOME"], false),
            ("a && b", &["a", "&&", "b"], true),
        ];
        for (line, words, needs_shell) in table {
            let split = split(line).unwrap();
            assert_eq!(split.words, words, "{line}");
            assert_eq!(split.needs_shell, needs_shell, "{line}");
        }
        assert_eq!(split("a 'b"), None);
        assert_eq!(split("a \\"), None);
    }
}
