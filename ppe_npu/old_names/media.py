"""The old name of several modules of ppe_npu.data."""

from ppe_npu.data.pictures import image_size, load_image
from ppe_npu.data.sampling import DEFAULT_FPS, VideoSampling
from ppe_npu.data.videos import Video, VideoFrame, VideoHeader, load_video, video_header

__all__ = [
    "DEFAULT_FPS",
    "Video",
    "VideoFrame",
    "VideoHeader",
    "VideoSampling",
    "image_size",
    "load_image",
    "load_video",
    "video_header",
]
