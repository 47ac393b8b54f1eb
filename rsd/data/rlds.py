"""RLDS directories as tensorflow-datasets lays them out: their metadata, a reader and a writer, without TensorFlow.

A directory <data.root>/<name>/<version> holds dataset_info.json (how many episodes each file has), features.json,
dataset_statistics.json and files <name>-train.tfrecord-XXXXX-of-XXXXX, in which every record is one episode.
"""

from rsd.data.rlds_metadata import check_dataset
from rsd.data.rlds_reader import RLDSDataset
from rsd.data.rlds_writer import RLDSWriter

__all__ = ["RLDSDataset", "RLDSWriter", "check_dataset"]
