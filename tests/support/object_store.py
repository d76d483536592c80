"""A local S3: moto's server, with one bucket."""

from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest

BUCKET = "photos-and-runs"
ADDRESS = f"s3://{BUCKET}"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """boto3's client of a server that this process runs, to which s3:// leads here and in processes that it starts."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
        "LDM_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    urlopen(Request(f"{settings['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")).close()  # of other tests'
    s3fs.S3FileSystem.clear_instance_cache()  # those of another server
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield client
    client.close()
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def keys(client: Any) -> list[str]:
    """What the bucket holds."""
    return sorted(each["Key"] for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", ()))
