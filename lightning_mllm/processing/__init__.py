"""From a sample (text and unread images) to tokens and pixels, and from many of them to a batch."""
