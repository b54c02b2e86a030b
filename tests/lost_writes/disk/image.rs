//! A whole file system in memory: plain files and directories, one name each, and what a power cut leaves of them.

use std::collections::HashMap;
use std::ffi::OsStr;

use fastrand::Rng;
use fuser::Errno;

use super::Loss;
use super::content::Content;
use super::names::Names;

/// The number of the root directory, as FUSE has it.
pub const ROOT: u64 = 1;

#[derive(Clone)]
pub enum Kind {
    File(Content),
    Directory(Names),
}

/// A file or directory. Mode and owner count as durable at once: nothing here depends on them after a power cut.
#[derive(Clone)]
pub struct Node {
    pub kind: Kind,
    pub mode: u16,
    pub owner: (u32, u32),
    /// Whether it still has its name.
    pub linked: bool,
    /// For people, and for telling one sync from another.
    pub path: String,
}

impl Node {
    pub fn length(&self) -> usize {
        match &self.kind {
            Kind::File(content) => content.length(),
            Kind::Directory(_) => 0,
        }
    }
}

/// The files, by number. A file without a name stays until the next power cut: it may be open, and the name that is
/// durable may still be its own.
#[derive(Clone)]
pub struct Image {
    nodes: HashMap<u64, Node>,
    next: u64,
}

impl Image {
    /// An empty root directory.
    pub fn new() -> Self {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let kind = Kind::Directory(Names::default());
        let root = Node { kind, mode: 0o755, owner, linked: true, path: String::new() };
        Self { nodes: HashMap::from([(ROOT, root)]), next: ROOT + 1 }
    }

    pub fn node(&self, file: u64) -> Result<&Node, Errno> {
        self.nodes.get(&file).ok_or(Errno::ENOENT)
    }

    pub fn node_mut(&mut self, file: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&file).ok_or(Errno::ENOENT)
    }

    pub fn content(&self, file: u64) -> Result<&Content, Errno> {
        match &self.node(file)?.kind {
            Kind::File(content) => Ok(content),
            Kind::Directory(_) => Err(Errno::EISDIR),
        }
    }

    pub fn content_mut(&mut self, file: u64) -> Result<&mut Content, Errno> {
        match &mut self.node_mut(file)?.kind {
            Kind::File(content) => Ok(content),
            Kind::Directory(_) => Err(Errno::EISDIR),
        }
    }

    pub fn names(&self, directory: u64) -> Result<&Names, Errno> {
        match &self.node(directory)?.kind {
            Kind::Directory(names) => Ok(names),
            Kind::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn names_mut(&mut self, directory: u64) -> Result<&mut Names, Errno> {
        match &mut self.node_mut(directory)?.kind {
            Kind::Directory(names) => Ok(names),
            Kind::File(_) => Err(Errno::ENOTDIR),
        }
    }

    pub fn lookup(&self, directory: u64, name: &OsStr) -> Result<u64, Errno> {
        self.names(directory)?.get(name).ok_or(Errno::ENOENT)
    }

    pub fn create(
        &mut self,
        directory: u64,
        name: &OsStr,
        kind: Kind,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<u64, Errno> {
        if self.names(directory)?.get(name).is_some() {
            return Err(Errno::EEXIST);
        }
        let file = self.next;
        self.next += 1;
        let path = self.path(directory, name)?;
        self.nodes.insert(file, Node { kind, mode: (mode & 0o7777) as u16, owner, linked: true, path });
        self.names_mut(directory)?.give(name, file);
        Ok(file)
    }

    fn path(&self, directory: u64, name: &OsStr) -> Result<String, Errno> {
        let parent = &self.node(directory)?.path;
        let name = name.to_string_lossy();
        Ok(if parent.is_empty() { name.into_owned() } else { format!("{parent}/{name}") })
    }

    /// Takes the name of a file, or of an empty directory, away.
    pub fn remove(&mut self, directory: u64, name: &OsStr) -> Result<(), Errno> {
        let file = self.lookup(directory, name)?;
        if matches!(&self.node(file)?.kind, Kind::Directory(names) if !names.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        self.names_mut(directory)?.take(name);
        self.node_mut(file)?.linked = false;
        Ok(())
    }

    /// Renames a file in its directory. Between directories, and of directories, nothing under test does it.
    pub fn rename(&mut self, directory: u64, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        let file = self.lookup(directory, from)?;
        self.content(file)?;
        if from == to {
            return Ok(());
        }
        if let Some(replaced) = self.names(directory)?.get(to) {
            self.content(replaced)?;
            self.node_mut(replaced)?.linked = false;
        }
        self.node_mut(file)?.path = self.path(directory, to)?;
        self.names_mut(directory)?.rename(from, to, file);
        Ok(())
    }

    /// A sync of a file or of a directory that succeeds: of it alone.
    pub fn sync(&mut self, file: u64) -> Result<(), Errno> {
        match &mut self.node_mut(file)?.kind {
            Kind::File(content) => content.sync(),
            Kind::Directory(names) => names.sync(),
        }
        Ok(())
    }

    /// A sync that fails.
    pub fn fail_sync(&mut self, file: u64) -> Result<(), Errno> {
        if let Kind::File(content) = &mut self.node_mut(file)?.kind {
            content.fail_sync();
        }
        Ok(())
    }

    /// Bytes of all files that have a name.
    pub fn used(&self) -> u64 {
        self.nodes.values().filter(|node| node.linked).map(|node| node.length() as u64).sum()
    }

    /// What is there after a power cut: what a durable name leads to.
    pub fn cut(&self, loss: Loss, rng: &mut Rng) -> Self {
        let mut after = Self { nodes: HashMap::new(), next: self.next };
        let mut found = vec![(ROOT, String::new())];
        while let Some((file, path)) = found.pop() {
            let Some(node) = self.nodes.get(&file) else { continue };
            let kind = match &node.kind {
                Kind::File(content) => Kind::File(content.cut(loss, rng)),
                Kind::Directory(names) => {
                    let names = names.cut(loss, rng);
                    let below = |name: &OsStr| {
                        let name = name.to_string_lossy();
                        if path.is_empty() { name.into_owned() } else { format!("{path}/{name}") }
                    };
                    found.extend(names.iter().map(|(name, file)| (file, below(name))));
                    Kind::Directory(names)
                }
            };
            after.nodes.insert(file, Node { kind, linked: true, path, ..node.clone() });
        }
        after
    }
}
