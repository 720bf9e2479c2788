// FFCV includes the header of all of OpenCV and uses these two parts.
#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>
