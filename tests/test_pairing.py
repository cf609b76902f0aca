"""Controls of pair training: the same images, other company."""

from collections import Counter

import numpy as np
import pytest
import torch

from adapt.data.groups import Groups, collate, make_batch
from adapt.data.manifest import Manifest
from adapt.data.pairing import rematched, unpaired
from adapt.data.preprocess import Preprocess
