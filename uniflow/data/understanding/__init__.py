"""Data modules in the official layouts of understanding data sets."""

from uniflow.data.understanding.conversations import Conversations as Conversations
