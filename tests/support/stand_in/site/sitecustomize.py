"""Found first on PYTHONPATH: makes any Python process of a test believe that Core ML is there (RVC_STAND_IN names the folder)."""

from support.stand_in.install import start

start()
