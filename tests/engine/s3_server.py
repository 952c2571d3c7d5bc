"""Helper: an S3 server on the loopback, as it is reached from everywhere: by the environment."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer


@contextmanager
def s3(bucket: str) -> Iterator[Mapping[str, str]]:
    """Environment variables by which a bucket is found; they are set within the block."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    os.environ.update(variables)
    try:
        boto3.client("s3").create_bucket(Bucket=bucket)
        yield variables
    finally:
        server.stop()
