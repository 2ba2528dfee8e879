//! Flags of a rep that hardly anybody needs: how long, how often, how many at once. Their defaults are the crates' own.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::duration::parse;

/// Locket knows whole seconds.
const PRESENCE_TTL_MIN: Duration = Duration::from_secs(1);
const PRESENCE_RENEWAL_MIN: Duration = Duration::from_millis(100);

#[derive(Args)]
#[command(next_help_heading = "Times and limits")]
pub struct Tuning {
    /// How long instances may take to be started elsewhere when the cell is evacuated.
    #[arg(long, default_value = "600s", value_parser = parse)]
    evacuation_timeout: Duration,
    /// How often it is looked whether the cell is empty, and the BBS is asked, meanwhile.
    #[arg(long, default_value = "10s", value_parser = parse)]
    evacuation_polling_interval: Duration,
    /// How often all is compared with the BBS.
    #[arg(long, default_value = "30s", value_parser = parse)]
    polling_interval: Duration,
    /// So long a cell that Locket does not hear of is taken to be there; in whole seconds.
    #[arg(long, default_value = "15s", value_parser = parse)]
    presence_ttl: Duration,
    /// How often Locket is told that the cell is there.
    #[arg(long, default_value = "5s", value_parser = parse)]
    presence_renewal: Duration,
    /// How long the BBS may take to answer; if 0 without limit.
    #[arg(long, default_value = "10s", value_parser = parse)]
    bbs_timeout: Duration,
    /// What processes get to end by themselves before they are killed.
    #[arg(long, default_value = "10s", value_parser = parse)]
    graceful_shutdown_interval: Duration,
    /// How often containers are looked for that nobody knows.
    #[arg(long, default_value = "60s", value_parser = parse)]
    container_reap_interval: Duration,
    /// How long a place is kept for work that does not come.
    #[arg(long, default_value = "60s", value_parser = parse)]
    reserved_expiration_time: Duration,
    /// Between two checks of a healthy container that does not say itself.
    #[arg(long, default_value = "30s", value_parser = parse)]
    healthy_monitoring_interval: Duration,
    /// The longest pause between two checks of a container that is not healthy yet.
    #[arg(long, default_value = "2s", value_parser = parse)]
    unhealthy_monitoring_interval: Duration,
    /// How long a check that does not say itself may take.
    #[arg(long, default_value = "1s", value_parser = parse)]
    declarative_healthcheck_default_timeout: Duration,
    #[arg(long, default_value_t = 32, value_parser = at_least_one)]
    create_work_pool_size: usize,
    #[arg(long, default_value_t = 32, value_parser = at_least_one)]
    delete_work_pool_size: usize,
    #[arg(long, default_value_t = 64, value_parser = at_least_one)]
    read_work_pool_size: usize,
    #[arg(long, default_value_t = 64, value_parser = at_least_one)]
    healthcheck_work_pool_size: usize,
    #[arg(long, default_value_t = 5, value_parser = at_least_one)]
    max_concurrent_downloads: usize,
    /// Of downloads that are kept.
    #[arg(long, default_value_t = 10 << 30)]
    max_cache_size_in_bytes: u64,
    /// Where downloads are kept, in a directory executor-cache; otherwise in the state directory.
    #[arg(long)]
    cache_path: Option<PathBuf>,
    /// For uploads under way, instances' credentials and records, in directories executor-…; otherwise in the state directory.
    #[arg(long)]
    pub temp_dir: Option<PathBuf>,
    /// Of one container, if 0 without limit.
    #[arg(long, default_value_t = 200_000)]
    container_inode_limit: u64,
    /// CPU shares of a container of weight 100.
    #[arg(long, default_value_t = 1024)]
    container_max_cpu_shares: u64,
    /// Weigh containers by their memory too.
    #[arg(long)]
    set_cpu_weight: bool,
    /// By this name containers in garden are known as this rep's; two reps of one garden need two.
    #[arg(long, default_value = "executor")]
    container_owner_name: String,
    /// Of one container; if 0 without limit.
    #[arg(long, default_value_t = 0)]
    max_log_lines_per_second: u32,
    /// A program that runs in each container after its setup, and its arguments: given once for each word.
    #[arg(long = "post-setup-hook", value_name = "WORD", allow_hyphen_values = true)]
    post_setup_hook: Vec<String>,
    #[arg(long, default_value = "root")]
    post_setup_user: String,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".into()),
        Ok(count) => Ok(count),
        Err(_) => Err("it must be a number".into()),
    }
}

impl Tuning {
    pub fn apply_to_executor(&self, config: &mut executor::Config) {
        config.graceful_shutdown_interval = self.graceful_shutdown_interval;
        config.reap_interval = self.container_reap_interval;
        config.reserved_expiration = self.reserved_expiration_time;
        config.healthy_monitoring_interval = self.healthy_monitoring_interval;
        config.unhealthy_monitoring_interval = self.unhealthy_monitoring_interval;
        config.check_timeout = self.declarative_healthcheck_default_timeout;
        config.work.creates = self.create_work_pool_size;
        config.work.deletes = self.delete_work_pool_size;
        config.work.reads = self.read_work_pool_size;
        config.work.checks = self.healthcheck_work_pool_size;
        config.work.downloads = self.max_concurrent_downloads;
        config.cache_bytes_max = self.max_cache_size_in_bytes;
        if let Some(path) = &self.cache_path {
            config.cache_dir = path.join("executor-cache");
        }
        if let Some(path) = &self.temp_dir {
            config.work_dir = path.join("executor-work");
        }
        config.container_inode_limit = self.container_inode_limit;
        config.cpu_shares_max = self.container_max_cpu_shares;
        config.set_cpu_weight = self.set_cpu_weight;
        config.owner_name.clone_from(&self.container_owner_name);
        config.log_lines_per_second_max = self.max_log_lines_per_second;
        config.post_setup_hook.clone_from(&self.post_setup_hook);
        config.post_setup_user.clone_from(&self.post_setup_user);
    }

    pub fn bbs_timeout(&self) -> Option<Duration> {
        Some(self.bbs_timeout).filter(|timeout| !timeout.is_zero())
    }

    /// Renewals come before the time is up.
    pub fn presence(&self) -> ::rep::PresenceTimes {
        let ttl = self.presence_ttl.max(PRESENCE_TTL_MIN);
        ::rep::PresenceTimes { ttl, renewal: self.presence_renewal.clamp(PRESENCE_RENEWAL_MIN, ttl / 2) }
    }

    pub fn apply_to_rep(&self, config: &mut ::rep::Config) {
        config.evacuation.timeout = self.evacuation_timeout;
        config.evacuation.polling_interval = self.evacuation_polling_interval;
        config.evacuation.graceful_shutdown_interval = self.graceful_shutdown_interval;
        config.intervals.sync = self.polling_interval;
        config.intervals.sync_while_evacuating = self.evacuation_polling_interval;
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Told {
        #[command(flatten)]
        tuning: Tuning,
    }

    #[test]
    fn who_says_nothing_gets_what_the_executor_does_by_itself() {
        let told = Told::try_parse_from(["rep"]).unwrap().tuning;
        diego_base::tls::install_provider();
        let config =
            || executor::Config::new("cell", Default::default(), "/state".into(), reqwest::Client::new());
        let mut tuned = config();
        told.apply_to_executor(&mut tuned);
        let usual = config();
        let times = |config: &executor::Config| {
            [
                config.graceful_shutdown_interval,
                config.reap_interval,
                config.reserved_expiration,
                config.healthy_monitoring_interval,
                config.unhealthy_monitoring_interval,
                config.check_timeout,
            ]
        };
        assert_eq!(times(&tuned), times(&usual));
        assert_eq!(format!("{:?}", tuned.work), format!("{:?}", usual.work));
        let rest = |config: &executor::Config| {
            let names =
                (config.owner_name.clone(), config.post_setup_user.clone(), config.post_setup_hook.clone());
            let paths = (config.cache_dir.clone(), config.work_dir.clone());
            let numbers = (config.cache_bytes_max, config.container_inode_limit, config.cpu_shares_max);
            (names, paths, numbers, config.set_cpu_weight, config.log_lines_per_second_max)
        };
        assert_eq!(rest(&tuned), rest(&usual));
        assert_eq!(told.presence(), ::rep::PresenceTimes::default());
        let intervals = ::rep::harmonizer::Intervals::default();
        assert_eq!(
            (told.polling_interval, told.evacuation_polling_interval),
            (intervals.sync, intervals.sync_while_evacuating)
        );
    }

    #[test]
    fn a_presence_is_renewed_before_its_time_is_up() {
        let rows =
            [(["1s", "5s"], [1000, 500]), (["0s", "0s"], [1000, 100]), (["60s", "7s"], [60_000, 7000])];
        for ([ttl, renewal], [ttl_ms, renewal_ms]) in rows {
            let flags = [format!("--presence-ttl={ttl}"), format!("--presence-renewal={renewal}")];
            let told = Told::try_parse_from(["rep".to_owned()].iter().chain(&flags)).unwrap();
            let times = told.tuning.presence();
            assert_eq!((times.ttl.as_millis(), times.renewal.as_millis()), (ttl_ms, renewal_ms), "{flags:?}");
        }
    }

    #[test]
    fn none_at_once_is_refused() {
        assert!(Told::try_parse_from(["rep", "--create-work-pool-size=0"]).is_err());
        assert!(Told::try_parse_from(["rep", "--evacuation-timeout=soon"]).is_err());
    }
}
