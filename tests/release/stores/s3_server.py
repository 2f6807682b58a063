"""Moto's S3 as a process: one request at a time, so that its conditional writes are atomic as a real store's are.

`python -m tests.release.stores.s3_server PORT` logs each request as one line to stderr.
"""

import sys

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple


def main() -> None:
    run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)


if __name__ == "__main__":
    main()
