//! An emulated host: a QEMU process with an AMD CPU that has SVM, in which a stock kernel has a real `/dev/kvm`.
//!
//! Owns the process, its initial RAM file system and its agent's connection. Does not own the network card's other end.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::agent::Agent;
use super::folders::{Cache, host_agent};
use super::namespace::Namespace;
use super::network::{PREFIX_LENGTH, Place};
use super::visible::{self, Shown};
use crate::initramfs::{Archive, ModuleTree};

/// What an emulated host is made of.
pub struct Emulation<'a> {
    /// Which one of its cluster it is.
    pub place: Place,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Its CPUs.
    pub cpus: u32,
    /// The namespace that has its tap.
    pub namespace: &'a Namespace,
    /// The folder of the run.
    pub run: &'a Path,
    /// Files that must be visible inside although they lie where the host has its own.
    pub visible: &'a [PathBuf],
    /// Modules of its kernel, beside those that every host needs.
    pub modules: &'a [&'a str],
    /// The image of its disk, if it has one.
    pub disk: Option<&'a Path>,
}

/// A running emulated host.
pub struct EmulatedHost {
    qemu: Mutex<Child>,
    console: PathBuf,
}

const MODULES: [&str; 10] = [
    "9p",
    "9pnet_virtio",
    "virtio_pci",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "kvm-amd",
    "tun",
    "bridge",
    "sch_ingress",
];
/// Without `nohz=off` its latency is erratic. It must not check at boot whether its timer ticks: on a busy machine it looks
/// away for too long, and gives up.
const KERNEL_WORDS: &str = "console=ttyS0 quiet nohz=off mitigations=off no_timer_check panic=-1 \
                            oops=panic ipv6.disable=1";
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// A host that boots. Several can boot at once; [`Booting::wait`] is where the time is spent.
pub struct Booting {
    host: EmulatedHost,
    agent_port: UnixStream,
}

impl Emulation<'_> {
    /// Starts the host.
    pub fn start(&self, cache: &Cache) -> Result<Booting> {
        let initramfs = self.file("initramfs");
        std::fs::write(&initramfs, self.initramfs(cache)?)
            .with_context(|| format!("cannot write {}", initramfs.display()))?;
        let console = self.file("console");
        let (agent_port, inner_port) = UnixStream::pair()?;
        let mut command = self.qemu(cache, &initramfs, &console, &inner_port)?;
        pass_on(&mut command, inner_port.into());
        let qemu = self.namespace.spawn(command).context("cannot start QEMU")?;
        Ok(Booting { host: EmulatedHost { qemu: Mutex::new(qemu), console }, agent_port })
    }

    fn name(&self) -> String {
        match self.place {
            Place::Host(index) => format!("host{index}"),
            Place::Storage => "storage".to_owned(),
        }
    }

    /// The path of one of its files, in the folder of the run.
    fn file(&self, kind: &str) -> PathBuf {
        self.run.join(format!("{}.{kind}", self.name()))
    }

    fn qemu(
        &self,
        cache: &Cache,
        initramfs: &Path,
        console: &Path,
        agent_port: &UnixStream,
    ) -> Result<Command> {
        let mut command = Command::new(cache.qemu());
        let (tap, mac, agent_port) = (self.place.port(), self.place.mac(), agent_port.as_raw_fd());
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-M", "q35", "-accel", "tcg", "-cpu", "EPYC,+svm,+npt"])
            .args(["-smp", &self.cpus.to_string()])
            .args(["-m", &self.memory_mib.to_string()])
            .arg("-kernel")
            .arg(cache.vmlinux())
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", KERNEL_WORDS])
            .args(["-fsdev", "local,id=outer,path=/,security_model=passthrough,multidevs=remap"])
            .args(["-device", "virtio-9p-pci,fsdev=outer,mount_tag=outer"])
            .args(["-netdev", &format!("tap,id=net,ifname={tap},script=no,downscript=no")])
            .args(["-device", &format!("virtio-net-pci,netdev=net,romfile=,mac={mac}")])
            .args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"])
            .args(["-chardev", &format!("socket,id=agent,fd={agent_port}")])
            .args(["-device", "virtserialport,chardev=agent,name=agent"])
            .arg("-serial")
            .arg(format!("file:{}", console.display()));
        if let Some(disk) = self.disk {
            command
                .args(["-drive", &format!("if=none,id=disk,format=raw,file={}", disk.display())])
                .args(["-device", "virtio-blk-pci,drive=disk"]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // It warns of each feature of the CPU that it does not emulate; of interest only if it fails.
        command.stderr(File::create(self.file("qemu"))?);
        // A Ctrl-C at the terminal is for the runner, which ends its hosts in order.
        command.process_group(0);
        Ok(command)
    }

    fn initramfs(&self, cache: &Cache) -> Result<Vec<u8>> {
        let busybox = std::fs::read(cache.busybox()).context("cannot read busybox")?;
        let names = [&MODULES, self.modules].concat();
        let mut modules = ModuleTree::open(&cache.modules())?.closure(&names)?;
        let mut archive = Archive::new();
        for folder in ["bin", "dev", "proc", "sys", "modules", "outer", "kept"] {
            archive.folder(folder);
        }
        archive.file("bin/busybox", &busybox).file("init", include_bytes!("host-init.sh"));
        for tool in ["mount", "insmod", "ip", "cat", "mkdir", "grep", "chroot", "poweroff", "echo"]
        {
            archive.link(&format!("bin/{tool}"), "busybox");
        }
        let mut names = Vec::new();
        for module in &mut modules {
            module.strip_signature();
            archive.file(&format!("modules/{}.ko", module.name), &module.content);
            names.push(module.name.as_str());
        }
        let address = self.place.address();
        let agent = host_agent()?;
        archive.file("kept.list", self.kept(&agent)?.as_bytes());
        archive.file(
            "host.conf",
            format!(
                "name={}\nmodules=\"{}\"\naddress={address}/{PREFIX_LENGTH}\nagent={}\n",
                self.name(),
                names.join(" "),
                quoted(&agent)
            )
            .as_bytes(),
        );
        Ok(archive.finish())
    }

    /// What must be shown although it lies in a folder of which the host has its own: two lines each, where it is and where
    /// it is looked for.
    fn kept(&self, agent: &Path) -> Result<String> {
        let agent = agent.parent().unwrap_or(agent);
        let mut paths: Vec<&Path> = vec![self.run, agent, super::folders::repository()];
        paths.extend(self.visible.iter().map(PathBuf::as_path));
        let mut shown: Vec<Shown> = Vec::new();
        for path in paths {
            for one in visible::shown(path)? {
                if !shown.contains(&one) {
                    shown.push(one);
                }
            }
        }
        let lines = shown.iter().map(|Shown { source, target }| format!("{source}\n{target}\n"));
        Ok(lines.collect())
    }
}

impl Booting {
    /// Waits until the host's agent answers.
    pub fn wait(self) -> Result<(EmulatedHost, Agent)> {
        let Self { host, agent_port } = self;
        let alive = || match host.lock().try_wait()? {
            None if super::interrupted() => bail!("interrupted"),
            None => Ok(()),
            Some(status) => bail!("QEMU ended with status {:?}", status.into_raw()),
        };
        let connected = Agent::connect(agent_port, BOOT_TIMEOUT, alive);
        match connected {
            Ok(agent) => Ok((host, agent)),
            Err(error) if super::interrupted() => Err(error),
            Err(error) => {
                let said = [&host.console, &host.console.with_extension("qemu")]
                    .map(|log| std::fs::read(log).unwrap_or_default())
                    .concat();
                let said = String::from_utf8_lossy(&said);
                Err(error.context(format!("an emulated host did not come up; it said:\n{said}")))
            }
        }
    }
}

impl EmulatedHost {
    fn lock(&self) -> MutexGuard<'_, Child> {
        self.qemu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: i32) -> Result<()> {
        let mut qemu = self.lock();
        ensure!(qemu.try_wait()?.is_none(), "the host has ended");
        let pid = i32::try_from(qemu.id())?;
        // SAFETY: kill(2) takes plain numbers; the child is not reaped yet, so the number is still its own.
        ensure!(unsafe { libc::kill(pid, signal) } == 0, "{}", std::io::Error::last_os_error());
        Ok(())
    }

    /// Kills it: the death of a host.
    pub fn end(&self) -> Result<()> {
        let mut qemu = self.lock();
        // One that has ended already is as dead as it shall be.
        let _ = qemu.kill();
        qemu.wait()?;
        Ok(())
    }

    /// Stops it in its tracks, all of it.
    pub fn pause(&self) -> Result<()> {
        self.signal(libc::SIGSTOP)
    }

    /// Undoes [`Self::pause`].
    pub fn resume(&self) -> Result<()> {
        self.signal(libc::SIGCONT)
    }

    /// What its kernel said so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }
}

impl Drop for EmulatedHost {
    fn drop(&mut self) {
        // Nothing can be done about an error here, and the kernel kills QEMU with this process anyhow.
        let _ = self.end();
    }
}

/// Lets the command inherit this descriptor under its own number.
fn pass_on(command: &mut Command, descriptor: OwnedFd) {
    let inherit = move || {
        // SAFETY: fcntl(2) takes plain numbers; the closure owns the descriptor, so it is open.
        match unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec only fcntl is called, which is safe after a fork.
    unsafe { command.pre_exec(inherit) };
}

/// A path as one word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
