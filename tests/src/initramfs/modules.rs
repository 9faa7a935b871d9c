//! Which kernel modules are needed, and in which order.
//!
//! Owns the reading of a folder of unpacked modules. A packaged kernel comes without `modules.dep` (that is made when
//! it is installed), so what a module depends on is read from the module itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// All modules of one kernel, by name.
pub struct ModuleTree {
    paths: BTreeMap<String, PathBuf>,
}

/// A module, ready to be loaded.
pub struct Module {
    /// Its name as the kernel prints it, with underscores.
    pub name: String,
    /// The file's content.
    pub content: Vec<u8>,
}

impl Module {
    /// Takes off the signature that its builder appended. A kernel that does not insist on one then skips hashing the
    /// module, which an emulated CPU takes long for.
    pub fn strip_signature(&mut self) {
        const MARKER: &[u8] = b"~Module signature appended~\n";
        // Before the marker: algorithm, hash, kind, lengths of signer and key, three bytes of padding, and the length
        // of the signature before that (big-endian).
        const DESCRIPTION_SIZE: usize = 12;
        let Some(rest) = self.content.strip_suffix(MARKER) else { return };
        let Some((_, length)) = rest.split_last_chunk::<4>() else { return };
        let signature_size = u32::from_be_bytes(*length) as usize + DESCRIPTION_SIZE;
        let kept = rest.len().saturating_sub(signature_size);
        self.content.truncate(kept);
    }
}

impl ModuleTree {
    /// Finds all modules under `folder`, the `lib/modules/VERSION` of a kernel.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut paths = BTreeMap::new();
        collect(&folder.join("kernel"), &mut paths)
            .with_context(|| format!("cannot read the kernel modules in {}", folder.display()))?;
        ensure!(!paths.is_empty(), "there are no kernel modules in {}", folder.display());
        Ok(Self { paths })
    }

    /// The modules of these names and all that they depend on, each after what it needs.
    pub fn closure(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut loaded = Vec::new();
        for name in names {
            self.load(&normal(name), &mut loaded)?;
        }
        Ok(loaded)
    }

    fn load(&self, name: &str, loaded: &mut Vec<Module>) -> Result<()> {
        if loaded.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let Some(path) = self.paths.get(name) else {
            bail!("the kernel has no module called {name}");
        };
        let content =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        for dependency in dependencies(&content) {
            self.load(&normal(&dependency), loaded)?;
        }
        loaded.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

/// The kernel takes `-` and `_` in a module's name for the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn collect(folder: &Path, paths: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, paths)?;
        } else if let Some(name) = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_suffix(".ko"))
        {
            paths.insert(normal(name), path.clone());
        }
    }
    Ok(())
}

/// The names in the `depends=` entry of a module's `.modinfo` section.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let names = &module[start + KEY.len()..];
    let end = names.iter().position(|byte| *byte == 0).unwrap_or(names.len());
    let names = String::from_utf8_lossy(&names[..end]);
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(modules: &[(&str, &str)]) -> (tempfile::TempDir, ModuleTree) {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel/drivers");
        std::fs::create_dir_all(&kernel).unwrap();
        for (name, depends) in modules {
            let content = format!("ELF\0license=GPL\0depends={depends}\0rest");
            std::fs::write(kernel.join(format!("{name}.ko")), content).unwrap();
        }
        let tree = ModuleTree::open(folder.path()).unwrap();
        (folder, tree)
    }

    #[test]
    fn a_module_comes_after_what_it_needs_and_only_once() {
        let (_folder, tree) = tree(&[
            ("virtio-net", "virtio,net_failover"),
            ("net_failover", "virtio"),
            ("virtio", ""),
        ]);
        let closure = tree.closure(&["virtio_net", "virtio"]).unwrap();
        let names: Vec<&str> = closure.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["virtio", "net_failover", "virtio_net"]);
    }

    #[test]
    fn a_signature_is_taken_off_and_nothing_else() {
        let description = [0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3];
        let signed = [b"module".as_slice(), b"sig", &description, b"~Module signature appended~\n"];
        let mut module = Module { name: "m".into(), content: signed.concat() };
        module.strip_signature();
        assert_eq!(module.content, b"module");
        module.strip_signature();
        assert_eq!(module.content, b"module");
    }

    #[test]
    fn a_module_that_is_not_there_is_named() {
        let (_folder, tree) = tree(&[("kvm", "irqbypass")]);
        let error = tree.closure(&["kvm"]).err().unwrap().to_string();
        assert!(error.contains("irqbypass"), "{error}");
    }
}
