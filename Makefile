# The daily commands. `make` lists them.
.PHONY: help build run test lint doc fmt sim bugs bench minio ci

help:            ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

build:           ## the release binary, target/release/millstream
	cargo build --release --bin millstream

run:             ## a Nexmark query on the embedded default
	cargo run --release --bin millstream -- run nexmark-q5

test:            ## all tests (starts a MinIO when Go is there)
	./scripts/test.sh

lint:            ## formatting and clippy
	cargo fmt --all --check && cargo clippy --workspace --all-targets --features millstream-tests/s3,millstream-objects/seaweedfs,millstream-objects/azurite,millstream-kafka/broker,millstream-kafka/registry,nexmark-kafka/broker -- -D warnings

fmt:             ## format the sources
	cargo fmt --all

doc:             ## the API documentation
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

sim:             ## 1,000 simulation seeds
	cargo run --release -p millstream-tests --bin sim -- --seeds 1..1000

bugs:            ## how many seeds each planted bug takes to be found
	./scripts/planted-bugs.sh

bench:           ## the tables of the README
	cargo run --release -p millstream-benches --bin bench

ci:              ## what every change must pass
	.ci/run
