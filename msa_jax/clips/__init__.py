"""Raw clips (video, audio, transcripts) to a corpus, and to predictions.

One file per extractor behind one small interface, `extractor.Extractor`; which of them
made a corpus is in its `notes["clips"]`, and prediction takes the very same. Weights
come from packages or folders of the user's, never from the network.
"""
