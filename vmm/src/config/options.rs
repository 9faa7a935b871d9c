//! The grammar of option values: `key=value` pairs with commas between, as Cloud Hypervisor reads
//! them. Commas inside double quotes or square brackets belong to the value.
//!
//! It knows no key: who asks for one says what its value must look like, and at the end
//! [`Options::finish`] refuses what nobody asked for.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use super::ConfigError;

/// The pairs of one option value, taken out one by one.
#[derive(Debug)]
pub struct Options {
    option: String,
    pairs: BTreeMap<String, String>,
    asked: Vec<&'static str>,
}

impl Options {
    /// Reads `text`, the value of `option` (whose name is only for messages).
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] for open quotes or brackets, a pair without `=`, a key given twice.
    pub fn parse(option: &str, text: &str) -> Result<Self, ConfigError> {
        Self::parse_with_lists(option, text, &[])
    }

    /// Like [`Options::parse`], but the keys in `lists` may be given several times: what they say is
    /// one list, with commas between.
    ///
    /// # Errors
    /// As there.
    pub fn parse_with_lists(option: &str, text: &str, lists: &[&str]) -> Result<Self, ConfigError> {
        let syntax = |reason: String| ConfigError::Syntax {
            option: option.to_owned(),
            text: text.to_owned(),
            reason,
        };
        let mut pairs: BTreeMap<String, String> = BTreeMap::new();
        if !text.trim().is_empty() {
            for part in split_commas(text).map_err(|reason| syntax(reason.to_owned()))? {
                let (key, value) =
                    part.split_once('=').ok_or_else(|| syntax(format!("\"{part}\" has no =")))?;
                let (key, value) = (key.trim().to_owned(), unquote(value.trim()));
                match pairs.get_mut(&key) {
                    Some(list) if lists.contains(&key.as_str()) => {
                        list.push(',');
                        list.push_str(&value);
                    }
                    Some(_) => return Err(syntax(format!("{key}= is given twice"))),
                    None => {
                        pairs.insert(key, value);
                    }
                }
            }
        }
        Ok(Options { option: option.to_owned(), pairs, asked: Vec::new() })
    }

    /// The value of `key`, taken out. An empty value is no value.
    pub fn take(&mut self, key: &'static str) -> Option<String> {
        self.asked.push(key);
        self.pairs.remove(key).filter(|value| !value.is_empty())
    }

    /// The value of `key` as a `T`; `expected` says in a message what a `T` looks like.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`] if the value is not one.
    pub fn take_as<T: FromStr>(
        &mut self,
        key: &'static str,
        expected: &str,
    ) -> Result<Option<T>, ConfigError> {
        self.take(key)
            .map(|value| value.parse().map_err(|_| self.bad_value(key, &value, expected)))
            .transpose()
    }

    /// The values of a list, whether it came in brackets, in several pairs, or as one value.
    pub fn take_list(&mut self, key: &'static str) -> Option<Vec<String>> {
        self.take(key).map(|text| read_list(&text))
    }

    /// The value of a switch: `on`, `off`, `true` or `false`; off if absent.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`] for any other word.
    pub fn take_switch(&mut self, key: &'static str) -> Result<bool, ConfigError> {
        Ok(self.take_optional_switch(key)?.unwrap_or(false))
    }

    /// The same for a switch that is not simply off when it is absent.
    ///
    /// # Errors
    /// As there.
    pub fn take_optional_switch(&mut self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        self.take(key)
            .map(|value| {
                read_switch(&value).ok_or_else(|| self.bad_value(key, &value, "on or off"))
            })
            .transpose()
    }

    /// The value of a size in bytes, with an optional `K`, `M` or `G`.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`] if it is not a size or does not fit 64 bits.
    pub fn take_size(&mut self, key: &'static str) -> Result<Option<u64>, ConfigError> {
        self.take(key)
            .map(|value| {
                read_size(&value).ok_or_else(|| self.bad_value(key, &value, SIZE_EXPECTED))
            })
            .transpose()
    }

    /// A message about a value of this option.
    pub fn bad_value(&self, key: &str, value: &str, expected: &str) -> ConfigError {
        ConfigError::BadValue {
            option: self.option.clone(),
            key: key.to_owned(),
            value: value.to_owned(),
            expected: expected.to_owned(),
        }
    }

    /// Refuses what nobody took: a key of Cloud Hypervisor's with a value that changes something,
    /// and a key that nobody knows. `foreign` lists Cloud Hypervisor's keys we have no use for,
    /// each with the values that ask for nothing beyond what we do.
    ///
    /// # Errors
    /// [`ConfigError::Unsupported`] and [`ConfigError::UnknownKey`].
    pub fn finish(self, foreign: &[(&str, &[&str])]) -> Result<(), ConfigError> {
        for (key, value) in &self.pairs {
            let Some((_, harmless)) = foreign.iter().find(|(name, _)| name == key) else {
                return Err(ConfigError::UnknownKey {
                    option: self.option.clone(),
                    key: key.clone(),
                    known: self.asked.join(", "),
                });
            };
            if !asks_for_nothing(value) && !harmless.contains(&value.as_str()) {
                return Err(ConfigError::Unsupported {
                    place: format!("{}: {key}", self.option),
                    value: value.clone(),
                });
            }
        }
        Ok(())
    }
}

/// What [`read_size`] reads, for messages.
pub(crate) const SIZE_EXPECTED: &str = "a size in bytes such as 512M or 1G";

fn asks_for_nothing(value: &str) -> bool {
    matches!(value, "" | "0" | "[]") || read_switch(value) == Some(false)
}

/// `on`, `off`, `true`, `false`, in any case.
pub(crate) fn read_switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" => Some(true),
        "off" | "false" => Some(false),
        _ => None,
    }
}

/// The parts of `a,b`, `[a,b]` or `[a],[b]`. An address in brackets that a port follows keeps them.
pub(crate) fn read_list(text: &str) -> Vec<String> {
    let parts = split_commas(text).unwrap_or_else(|_| vec![text]);
    let parts = parts.into_iter().map(str::trim);
    parts
        .flat_map(|part| match part.strip_prefix('[').and_then(|part| part.strip_suffix(']')) {
            Some(inner) if !inner.is_empty() => read_list(inner),
            Some(_) => Vec::new(),
            None if part.is_empty() => Vec::new(),
            None => vec![part.to_owned()],
        })
        .collect()
}

/// A number of bytes, with an optional `K`, `M` or `G` (powers of 1024).
pub(crate) fn read_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, factor) = match text.char_indices().next_back()? {
        (at, 'K') => (&text[..at], 1 << 10),
        (at, 'M') => (&text[..at], 1 << 20),
        (at, 'G') => (&text[..at], 1 << 30),
        _ => (text, 1_u64),
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// A size in the shortest form [`read_size`] reads back.
pub(crate) fn print_size(bytes: u64) -> String {
    for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// Cuts at commas outside quotes and brackets; the quotes stay where they are.
fn split_commas(text: &str) -> Result<Vec<&str>, &'static str> {
    let (mut parts, mut start, mut depth, mut quoted) = (Vec::new(), 0, 0_usize, false);
    for (at, character) in text.char_indices() {
        match character {
            '"' => quoted = !quoted,
            '[' if !quoted => depth += 1,
            ']' if !quoted => {
                depth = depth.checked_sub(1).ok_or("a ] closes nothing")?;
            }
            ',' if !quoted && depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    match (quoted, depth) {
        (true, _) => Err("a \" is not closed"),
        (false, 0) => Ok(parts),
        (false, _) => Err("a [ is not closed"),
    }
}

fn unquote(text: &str) -> String {
    text.replace('"', "")
}

/// Builds the text that [`Options::parse`] reads back: used to show a configuration as a user
/// would type it.
#[derive(Debug, Default)]
pub(crate) struct OptionsText(String);

impl OptionsText {
    /// Appends `key=value`, quoted if it must be.
    pub(crate) fn push(&mut self, key: &str, value: impl Display) {
        let value = value.to_string();
        if !self.0.is_empty() {
            self.0.push(',');
        }
        let plain = value.trim() == value && !value.contains(',') && balanced(&value);
        let quote = if plain { "" } else { "\"" };
        self.0.push_str(&format!("{key}={quote}{value}{quote}"));
    }

    /// Appends `key=value` if there is a value.
    pub(crate) fn push_some(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.push(key, value);
        }
    }

    /// Appends `key=on` if the switch is on.
    pub(crate) fn push_switch(&mut self, key: &str, on: bool) {
        if on {
            self.push(key, "on");
        }
    }

    /// The finished text.
    pub(crate) fn finish(self) -> String {
        self.0
    }
}

fn balanced(text: &str) -> bool {
    split_commas(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, ConfigError> {
        Options::parse("--disk", text)
    }

    fn sentence(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn pairs_are_split_at_commas_outside_quotes_and_brackets() {
        let mut options =
            parse("a=1, b=\"x,y\" ,c=[1,[2,3]],d=http://h/?q=1,e=[::1]:7000,f=").unwrap();
        assert_eq!(options.take("a").as_deref(), Some("1"));
        assert_eq!(options.take("b").as_deref(), Some("x,y"));
        assert_eq!(options.take("c").as_deref(), Some("[1,[2,3]]"));
        assert_eq!(options.take("d").as_deref(), Some("http://h/?q=1"));
        assert_eq!(options.take("e").as_deref(), Some("[::1]:7000"));
        assert_eq!(options.take("f"), None);
        options.finish(&[]).unwrap();
    }

    #[test]
    fn broken_lists_are_named_in_a_sentence() {
        assert_eq!(
            sentence("a=\"x"),
            "--disk: \"a=\"x\" is not a list of key=value pairs: a \" is not closed."
        );
        assert!(sentence("a=[1").ends_with("a [ is not closed."));
        assert!(sentence("a=1]").ends_with("a ] closes nothing."));
        assert!(sentence("a=1,/x.img").ends_with("\"/x.img\" has no =."));
        assert!(sentence("a=1,a=2").ends_with("a= is given twice."));
    }

    #[test]
    fn a_list_may_come_in_brackets_or_in_several_pairs() {
        for text in
            ["s=a:1,s=[::1]:2", "s=[a:1,[::1]:2]", "s=\"a:1,[::1]:2\"", "s=[a:1],s=[[::1]:2]"]
        {
            let mut options = Options::parse_with_lists("--ft", text, &["s"]).unwrap();
            assert_eq!(options.take_list("s").unwrap(), ["a:1", "[::1]:2"], "{text}");
        }
        let mut none = Options::parse_with_lists("--ft", "s=[]", &["s"]).unwrap();
        assert_eq!(none.take_list("s").unwrap(), [""; 0]);
        assert!(Options::parse_with_lists("--ft", "s=a,t=1,t=2", &["s"]).is_err());
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_known_ones() {
        let mut options = parse("path=/x,wether=sunny").unwrap();
        options.take("path");
        options.take("readonly");
        assert_eq!(
            options.finish(&[]).unwrap_err().to_string(),
            "--disk: there is no key \"wether\" here. The keys are: path, readonly."
        );
    }

    #[test]
    fn a_foreign_key_passes_only_while_it_asks_for_nothing() {
        let foreign: &[(&str, &[&str])] = &[("iommu", &[]), ("queue_size", &["128"])];
        for harmless in ["iommu=off", "iommu=false", "iommu=0", "queue_size=128", "iommu="] {
            parse(harmless).unwrap().finish(foreign).unwrap();
        }
        assert_eq!(
            parse("queue_size=64").unwrap().finish(foreign).unwrap_err().to_string(),
            "--disk: queue_size is set to 64, which this VMM cannot do (docs/COMPATIBILITY.md \
             says what it can). Leave it out."
        );
        assert!(parse("iommu=on").unwrap().finish(foreign).is_err());
    }

    #[test]
    fn sizes_have_units_and_never_overflow() {
        assert_eq!(read_size("512M"), Some(512 << 20));
        assert_eq!(read_size("1G"), Some(1 << 30));
        assert_eq!(read_size("7K"), Some(7 << 10));
        assert_eq!(read_size("4096"), Some(4096));
        for bad in
            ["", "M", "-1M", "1T", "1MM", "99999999999G", "18446744073709551616", "1.5G", "é"]
        {
            assert_eq!(read_size(bad), None, "{bad}");
        }
        assert_eq!(print_size(512 << 20), "512M");
        assert_eq!(print_size((1 << 30) + 1), "1073741825");
        assert_eq!(print_size(0), "0");
    }

    #[test]
    fn a_switch_takes_four_words_only() {
        assert!(parse("r=on").unwrap().take_switch("r").unwrap());
        assert!(!parse("r=False").unwrap().take_switch("r").unwrap());
        assert!(!parse("").unwrap().take_switch("r").unwrap());
        assert_eq!(
            parse("r=yes").unwrap().take_switch("r").unwrap_err().to_string(),
            "--disk: r=yes cannot be read: on or off is needed."
        );
    }
}
