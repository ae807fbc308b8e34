# What all jobs share: a certificate that this run's processes know each other by, for whoever reaches a Dask scheduler runs code.
cd "${SLURM_SUBMIT_DIR:-.}"
tls=$PWD/logs/tls
if [ ! -e "$tls/cert.pem" ]; then
  mkdir -p "$tls" && chmod 700 "$tls"
  openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=companion -keyout "$tls/key.$$" -out "$tls/cert.$$" 2>/dev/null
  mv "$tls/key.$$" "$tls/key.pem" && mv "$tls/cert.$$" "$tls/cert.pem"
fi
export DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME=tls DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=true
export DASK_DISTRIBUTED__COMM__TLS__CA_FILE=$tls/cert.pem
for who in SCHEDULER WORKER CLIENT; do
  export "DASK_DISTRIBUTED__COMM__TLS__${who}__CERT=$tls/cert.pem" "DASK_DISTRIBUTED__COMM__TLS__${who}__KEY=$tls/key.pem"
done
export PATH=$PWD/.venv/bin:$PATH
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
