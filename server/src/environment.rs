//! Where a store runs: what a measurement must say to be worth anything.

use std::path::Path;

use crate::proto::admin::Environment;

/// When a write counts as durable. The log is the only thing that is synced for a write; see `store`.
const SYNC_POLICY: &str = "fdatasync of every log record before it is acknowledged";

/// What can be told of this process and of the directory at `data`; what cannot be found out is empty.
pub(crate) fn of(data: &Path, revision: Option<&str>) -> Environment {
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let data = std::fs::canonicalize(data).unwrap_or_else(|_| data.to_owned());
    let (model, memory_bytes) = (
        processor_model(&file("/proc/cpuinfo")).to_owned(),
        memory(&file("/proc/meminfo")),
    );
    Environment {
        revision: revision.unwrap_or_default().to_owned(),
        profile: if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        }
        .to_owned(),
        rocksdb: polyraft_store::engine_version(&data).unwrap_or_default(),
        filesystem: filesystem(&file("/proc/self/mountinfo"), &data).to_owned(),
        data_dir: data.display().to_string(),
        sync_policy: SYNC_POLICY.to_owned(),
        processors: std::thread::available_parallelism()
            .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        processor_model: model,
        memory_bytes,
        kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
    }
}

fn processor_model(cpuinfo: &str) -> &str {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(": "))
        .map_or("", |(_, name)| name)
}

fn memory(meminfo: &str) -> u64 {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.map_or(0, |kib| kib << 10)
}

/// The type of the filesystem that holds `path`: that of the longest mount point above it, the last
/// of equal ones, which hides the others.
fn filesystem<'a>(mountinfo: &'a str, path: &Path) -> &'a str {
    let mut best = (0, "");
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let (Some(mounted), Some(kind)) = (left.split(' ').nth(4), right.split(' ').next()) else {
            continue;
        };
        if path.starts_with(mounted) && mounted.len() >= best.0 {
            best = (mounted.len(), kind);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filesystem_is_that_of_the_nearest_mount_point() {
        let mounts = "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n\
                      30 22 0:26 / /tmp rw shared:1 - tmpfs tmpfs rw\n\
                      31 22 0:27 / /var/lib rw - xfs /dev/vdb rw\n\
                      32 22 0:28 / /var/lib rw - btrfs /dev/vdc rw\n";
        let of = |path: &str| filesystem(mounts, Path::new(path));
        assert_eq!(of("/home/data"), "ext4");
        assert_eq!(of("/tmp/x"), "tmpfs");
        assert_eq!(of("/tmpx"), "ext4");
        assert_eq!(of("/var/lib/polyraft"), "btrfs");
        assert_eq!(filesystem("", Path::new("/x")), "");
    }

    #[test]
    fn figures_are_read_as_the_kernel_writes_them() {
        assert_eq!(
            memory("MemTotal:       16316384 kB\nMemFree: 1 kB\n"),
            16_316_384 << 10
        );
        assert_eq!(memory(""), 0);
        assert_eq!(
            processor_model("processor : 0\nmodel name\t: Fast 3000\n"),
            "Fast 3000"
        );
    }
}
