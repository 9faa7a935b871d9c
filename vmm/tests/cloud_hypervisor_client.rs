//! The published client of Cloud Hypervisor's API against our server: what it sends is understood,
//! what we answer is what it expects.

mod common;

use cloud_hypervisor_client::apis::{DefaultApi, Error};
use cloud_hypervisor_client::models::{
    ConsoleConfig, ConsoleMode, CpusConfig, DiskConfig, MemoryConfig, NetConfig, PayloadConfig,
    ReceiveMigrationData, RngConfig, SendMigrationData, SerialConfig, TimeoutStrategy, VmConfig,
    VmResize, VmState,
};
use cloud_hypervisor_client::{SocketBasedApiClient, socket_based_api_client};
use common::StubVmm;

fn vm() -> VmConfig {
    let payload = PayloadConfig {
        kernel: Some("/boot/vmlinux".into()),
        cmdline: Some("console=ttyS0".into()),
        ..PayloadConfig::new()
    };
    VmConfig {
        cpus: Some(CpusConfig { nested: Some(true), ..CpusConfig::new(1, 1) }),
        memory: Some(MemoryConfig { shared: Some(false), ..MemoryConfig::new(1 << 30) }),
        disks: Some(vec![DiskConfig {
            path: Some("/images/root.img".into()),
            readonly: Some(false),
            num_queues: Some(1),
            ..DiskConfig::new()
        }]),
        net: Some(vec![NetConfig {
            tap: Some("tap0".into()),
            mac: Some("52:54:00:00:00:01".into()),
            ..NetConfig::new()
        }]),
        rng: Some(RngConfig::new("/dev/random".into())),
        serial: Some(SerialConfig::new(ConsoleMode::Null)),
        console: Some(ConsoleConfig::new(ConsoleMode::Off)),
        ..VmConfig::new(payload)
    }
}

async fn state(client: &SocketBasedApiClient) -> VmState {
    client.vm_info_get().await.unwrap().state
}

/// The status and the body of a refusal.
fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> (u16, String) {
    match result.unwrap_err() {
        Error::Api(error) => (error.code.as_u16(), error.body),
        other => panic!("the client failed before the server could refuse: {other}"),
    }
}

#[tokio::test]
async fn the_life_of_a_vm() {
    let stub = StubVmm::start();
    let client = socket_based_api_client(stub.socket());
    let ping = client.vmm_ping_get().await.unwrap();
    assert_eq!(ping.pid, Some(i64::from(std::process::id())));
    assert!(ping.version.starts_with('v'));
    client.create_vm(vm()).await.unwrap();
    assert_eq!(state(&client).await, VmState::Created);
    client.boot_vm().await.unwrap();
    assert_eq!(state(&client).await, VmState::Running);
    client.pause_vm().await.unwrap();
    assert_eq!(state(&client).await, VmState::Paused);
    client.resume_vm().await.unwrap();
    client.reboot_vm().await.unwrap();
    assert_eq!(state(&client).await, VmState::Running);
    client.power_button_vm().await.unwrap();
    assert_eq!(state(&client).await, VmState::Shutdown);
    client.boot_vm().await.unwrap();
    client.shutdown_vm().await.unwrap();
    assert_eq!(state(&client).await, VmState::Shutdown);
    client.delete_vm().await.unwrap();
    client.shutdown_vmm().await.unwrap();
}

#[tokio::test]
async fn a_configuration_comes_back_completed() {
    let stub = StubVmm::start();
    let client = socket_based_api_client(stub.socket());
    client.create_vm(vm()).await.unwrap();
    let info = client.vm_info_get().await.unwrap();
    assert_eq!(info.memory_actual_size, Some(1 << 30));
    let config = info.config;
    assert_eq!(config.payload, vm().payload);
    let disk = &config.disks.unwrap()[0];
    assert_eq!(disk.path.as_deref(), Some("/images/root.img"));
    assert_eq!(disk.id.as_deref(), Some("_disk0"));
    let net = &config.net.unwrap()[0];
    assert_eq!(net.id.as_deref(), Some("_net1"));
    assert_eq!(net.mac.as_deref(), Some("52:54:00:00:00:01"));
    assert_eq!(config.console.unwrap().mode, ConsoleMode::Off);
}

#[tokio::test]
async fn a_vm_moves_with_every_default_said() {
    let stub = StubVmm::start();
    let client = socket_based_api_client(stub.socket());
    client.create_vm(vm()).await.unwrap();
    let order = SendMigrationData {
        local: Some(false),
        downtime_ms: Some(300),
        timeout_s: Some(3600),
        timeout_strategy: Some(TimeoutStrategy::Cancel),
        connections: Some(1),
        ..SendMigrationData::new("tcp:10.0.0.2:7000".into())
    };
    client.vm_send_migration_put(order).await.unwrap();
    let order = || ReceiveMigrationData::new("tcp:0.0.0.0:7000".into());
    client.vm_receive_migration_put(order()).await.unwrap();
    assert_eq!(state(&client).await, VmState::Running);
    let (status, body) = refusal(client.vm_receive_migration_put(order()).await);
    assert_eq!((status, body.as_str()), (500, r#"["There is a VM already."]"#));
    let local = SendMigrationData { local: Some(true), ..SendMigrationData::new("tcp:b:1".into()) };
    let (status, body) = refusal(client.vm_send_migration_put(local).await);
    assert!(status == 400 && body.contains("local=true would share"), "{body}");
    let unix = SendMigrationData::new("unix:/run/s".into());
    let (status, body) = refusal(client.vm_send_migration_put(unix).await);
    assert!(status == 400 && body.contains("Unix socket yet"), "{body}");
}

#[tokio::test]
async fn counters_are_numbers_by_device() {
    let stub = StubVmm::start();
    let client = socket_based_api_client(stub.socket());
    client.create_vm(vm()).await.unwrap();
    let counters = client.vm_counters_get().await.unwrap();
    assert_eq!(counters["_net1"]["tx_bytes"], 9);
}

#[tokio::test]
async fn refusals_reach_the_client_as_sentences() {
    let stub = StubVmm::start();
    let client = socket_based_api_client(stub.socket());
    let none = (404, r#"["No VM has been created."]"#.to_owned());
    assert_eq!(refusal(client.boot_vm().await), none);
    assert_eq!(refusal(client.vm_info_get().await), none);
    client.create_vm(vm()).await.unwrap();
    let twice = refusal(client.create_vm(vm()).await);
    assert_eq!(twice, (500, r#"["There is a VM already; delete it first."]"#.to_owned()));
    let (status, body) = refusal(client.vm_resize_put(VmResize::new()).await);
    assert_eq!(status, 501);
    assert!(
        body.contains("vm.resize is part of Cloud Hypervisor's API but not there yet"),
        "{body}"
    );
}

#[tokio::test]
async fn what_the_client_can_say_and_we_cannot_do_is_refused_by_name() {
    let stub = StubVmm::start();
    let client = socket_based_api_client(stub.socket());
    let many = VmConfig { cpus: Some(CpusConfig::new(2, 4)), ..vm() };
    let (status, body) = refusal(client.create_vm(many).await);
    assert_eq!(status, 400);
    assert!(body.starts_with(r#"["4 vCPUs are asked for"#), "{body}");
    let watched = VmConfig { watchdog: Some(true), ..vm() };
    let (status, body) = refusal(client.create_vm(watched).await);
    assert_eq!(status, 400);
    assert!(body.starts_with(r#"["watchdog is set to true, which this VMM cannot do"#), "{body}");
}
