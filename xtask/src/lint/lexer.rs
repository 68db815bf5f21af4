//! Tells code from comments and literals in Rust sources: enough of Rust's lexical rules for checks of single words.

/// The text with every comment and literal turned into spaces; lines and columns stay where they are.
pub fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end > at {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else if is_word(chars[at]) {
            // A whole word at once, so that the `r` of `for"` or the `b` of `sub'` starts no literal.
            while at < chars.len() && is_word(chars[at]) {
                out.push(chars[at]);
                at += 1;
            }
        } else {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Where the comment or literal that starts at `at` ends; `at` itself if none does.
fn literal_end(chars: &[char], at: usize) -> usize {
    let next = |n: usize| chars.get(at + n).copied();
    match (chars[at], next(1)) {
        ('/', Some('/')) => find(chars, at, |c| c == '\n'),
        ('/', Some('*')) => block_comment_end(chars, at),
        ('"', _) => quoted_end(chars, at + 1, '"'),
        ('b' | 'c', Some('"')) => quoted_end(chars, at + 2, '"'),
        ('b', Some('\'')) => quoted_end(chars, at + 2, '\''),
        ('r', Some('"' | '#')) => raw_end(chars, at + 1).unwrap_or(at),
        ('b' | 'c', Some('r')) if matches!(next(2), Some('"' | '#')) => raw_end(chars, at + 2).unwrap_or(at),
        // A character ends two or more places on; a lifetime has no second quote there.
        ('\'', Some('\\')) => quoted_end(chars, at + 1, '\''),
        ('\'', Some(_)) if next(2) == Some('\'') => at + 3,
        _ => at,
    }
}

fn find(chars: &[char], from: usize, is: impl Fn(char) -> bool) -> usize {
    chars[from..].iter().position(|c| is(*c)).map_or(chars.len(), |n| from + n)
}

fn block_comment_end(chars: &[char], from: usize) -> usize {
    let (mut depth, mut at) = (0_usize, from);
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

fn quoted_end(chars: &[char], from: usize, quote: char) -> usize {
    let mut at = from;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// `from` is behind the `r`; none for a raw identifier.
fn raw_end(chars: &[char], from: usize) -> Option<usize> {
    let hashes = chars[from..].iter().take_while(|c| **c == '#').count();
    if chars.get(from + hashes) != Some(&'"') {
        return None;
    }
    let closes =
        |at: usize| chars[at] == '"' && chars[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
    (from + hashes + 1..chars.len()).find(|at| closes(*at)).map(|at| at + 1 + hashes).or(Some(chars.len()))
}

/// Whether a line of code has this word, not as a part of a longer one.
pub fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_comments_and_literals_and_keeps_columns() {
        let text = "let a = \"unsafe\"; // unsafe\n/* unsafe /* nested */ unsafe */ let b = r#\"un\"safe\"#; c";
        let code = code_only(text);
        assert!(!code.contains("safe"), "{code}");
        assert_eq!(code.len(), text.len());
        assert!(code.ends_with("; c") && code.contains("let b ="));
    }

    #[test]
    fn tells_lifetimes_from_characters() {
        let code = code_only("fn f<'a>(x: &'a str) { g('\"', '\\'', b'\"', 'x'); unsafe_here }");
        assert!(code.contains("<'a>(x: &'a str)") && code.contains("unsafe_here"), "{code}");
        assert!(!code.contains('"'), "{code}");
    }

    #[test]
    fn raw_identifiers_are_code() {
        assert_eq!(code_only("r#unsafe + for_r\"x\""), "r#unsafe + for_r   ");
    }

    #[test]
    fn finds_whole_words_only() {
        assert!(has_word("unsafe { x }", "unsafe") && has_word("#[unsafe(no_mangle)]", "unsafe"));
        assert!(!has_word("#![deny(unsafe_code)]", "unsafe"));
    }
}
